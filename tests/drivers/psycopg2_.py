"""psycopg2: simple protocol only. Arguments: port, database."""
import sys
import psycopg2
import psycopg2.extras

port, database = sys.argv[1:]
conn = psycopg2.connect(host="127.0.0.1", port=port, dbname=database, user="shop_app")


def show(label, value):
    print(f"{label}: {value!r}", flush=True)


with conn, conn.cursor() as cur:
    cur.execute("select %s, %s, %s, array[1,2], null, true, '2024-02-29'::date", (1, "ä'€", 1.5))
    show("types", cur.fetchall())
    psycopg2.extras.execute_values(cur, "insert into scratch values %s", [(100, "a", None), (101, "b", None)])
    show("rowcount", cur.rowcount)
with conn, conn.cursor(name="c") as cur:
    cur.itersize = 2
    cur.execute("select id, body from scratch order by id")
    show("cursor", list(cur))
try:
    with conn, conn.cursor() as cur:
        cur.execute("insert into scratch values (1, 'double')")
except psycopg2.errors.UniqueViolation as error:
    show("error", (error.pgcode, error.diag.constraint_name))
with conn, conn.cursor() as cur:
    cur.execute("delete from scratch where id >= 100")
    show("status", cur.statusmessage)
conn.close()
