"""The shop's application: what it asks and what it sees, one JSON line an answer.

client.py loop            keeps one session open, asks it every second, and asks a new session too
client.py once SQL        one session, one statement
Host, port, user, database and password are libpq's own variables: nothing here knows of Weir.
"""
import json
import sys
import time

import psycopg2

ASK = "select id, name, email from customers order by id limit 2"


def ask(connection, sql):
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            rows = cursor.fetchall() if cursor.description else []
        return {"rows": [[str(value) for value in row] for row in rows]}
    except psycopg2.Error as error:
        return {"error": str(error).strip(), "sqlstate": error.pgcode}


def session(sql):
    try:
        connection = psycopg2.connect("")
    except psycopg2.Error as error:
        return {"connect": str(error).strip()}
    connection.autocommit = True
    answer = ask(connection, sql)
    connection.close()
    return answer


def say(kind, answer):
    print(json.dumps({"kind": kind, "at": time.time(), **answer}), flush=True)


def loop():
    kept = None
    while True:
        if kept is None or kept.closed:
            try:
                kept = psycopg2.connect("")
                kept.autocommit = True
            except psycopg2.Error as error:
                say("open", {"connect": str(error).strip()})
                kept = None
        if kept is not None:
            say("open", ask(kept, ASK))
        say("new", session(ASK))
        time.sleep(0.5)


if sys.argv[1:2] == ["loop"]:
    loop()
else:
    answer = session(sys.argv[2])
    say("once", answer)
    sys.exit(0 if "rows" in answer else 1)
