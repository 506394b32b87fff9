"""psycopg 3 on governed tables. Arguments: port, database."""
import sys
import psycopg

port, database = sys.argv[1:]
conn = psycopg.connect(host="127.0.0.1", port=port, dbname=database, user="shop_app", autocommit=True)


def check(label, got, wanted):
    assert got == wanted, f"{label}: {got!r} instead of {wanted!r}"
    print(f"ok {label}")


mails = [("a***@example.com",), ("b***@example.org",), ("c***@example.net",)]
for i in range(8):
    rows = conn.execute("select email from customers where id > %s order by id", (0,)).fetchall()
    check("prepared by itself", rows, mails)
for binary in (False, True):
    with conn.cursor(binary=binary) as cur:
        cur.execute("select salary, card, ssn from customers where id = 1")
        salary, card, ssn = cur.fetchone()
        check("int8", (salary, len(card), ssn), (0, 64, None))
with conn.pipeline():
    cursors = [conn.execute("select email from customers order by id") for _ in range(3)]
    check("pipeline", [c.fetchall() for c in cursors], [mails] * 3)
with conn.transaction():
    with conn.cursor(name="c") as cur:
        cur.execute("select email from customers order by id")
        check("cursor", cur.fetchall(), mails)
with conn.cursor().copy("copy (select email from customers order by id) to stdout") as copy:
    check("copy", list(copy.rows()), mails)
# A refusal is an error like another; the session goes on and the transaction is gone.
try:
    with conn.transaction():
        conn.execute("update scratch set body = 'lost' where id = 1")
        conn.execute("delete from scratch")
    raise SystemExit("not refused")
except psycopg.errors.InsufficientPrivilege as error:
    check("refused", str(error).startswith("WEIR-"), True)
check("rolled back", conn.execute("select body from scratch where id = 1").fetchone(), ("one",))
# A pipeline: nothing before the refusal is committed.
try:
    with conn.pipeline():
        conn.execute("insert into scratch values (50, 'lost')")
        conn.execute("delete from scratch")
        conn.execute("insert into scratch values (51, 'lost')")
    raise SystemExit("not refused")
except (psycopg.errors.InsufficientPrivilege, psycopg.errors.PipelineAborted):
    pass
check("pipeline rolled back", conn.execute("select count(*) from scratch").fetchone(), (3,))
# An ORM writes back what it read.
row = conn.execute("select name, email from customers where id = 1").fetchone()
conn.execute("update customers set name = %s, email = %s where id = 1", row)
print("done")
