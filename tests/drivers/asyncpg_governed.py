"""asyncpg on governed tables: it caches prepared statements and asks for binary. Arguments: port, database."""
import asyncio
import datetime
import sys
import asyncpg

port, database = sys.argv[1:]


def check(label, got, wanted):
    assert got == wanted, f"{label}: {got!r} instead of {wanted!r}"
    print(f"ok {label}")


async def main():
    conn = await asyncpg.connect(host="127.0.0.1", port=int(port), database=database, user="shop_app")
    sql = "select email, salary, ssn, born, length(name) from customers where id = $1"
    for i in range(5):
        row = await conn.fetchrow(sql, 1)
        check("cached", tuple(row), ("a***@example.com", 0, None, datetime.date(1987, 1, 1), 3))
    for i in range(3):
        row = await conn.fetchrow("select card, id from customers where id = 1")
        check("token", (len(row["card"]), row["id"]), (64, 1))
    async with conn.transaction():
        rows = [r["email"] async for r in conn.cursor("select email from customers order by id", prefetch=1)]
        check("cursor", rows, ["a***@example.com", "b***@example.org", "c***@example.net"])
    check("filtered", await conn.fetchval("select count(*) from orders"), 3)
    for attempt in ("delete from scratch", "select * from payroll", "select wipe()"):
        try:
            await conn.fetch(attempt)
            raise SystemExit("not refused: " + attempt)
        except asyncpg.InsufficientPrivilegeError as error:
            check("refused", str(error).startswith("WEIR-"), True)
    try:
        async with conn.transaction():
            await conn.execute("update scratch set body = 'lost' where id = 1")
            await conn.execute("delete from scratch")
        raise SystemExit("not refused")
    except asyncpg.InsufficientPrivilegeError:
        pass
    check("rolled back", await conn.fetchval("select body from scratch where id = 1"), "one")
    await conn.execute("set search_path = a")
    check("a.t", [tuple(r) for r in await conn.fetch("select * from t")], [(1, "plain")])
    await conn.execute("set search_path = b")
    for attempt in range(2):
        try:
            check("b.t", [tuple(r) for r in await conn.fetch("select * from t")], [(1, None)])
        except asyncpg.PostgresError as error:
            print("an error serves too:", error.sqlstate)
    await conn.close()
    print("done")


asyncio.run(main())
