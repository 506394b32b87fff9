"""asyncpg (binary format, cached prepared statements) against a freshly loaded shop; see psycopg3.py.

usage: asyncpg_.py URL
"""
import asyncio
import datetime
import decimal
import io
import sys
import uuid

import asyncpg

URL = sys.argv[1]


def show(name, value):
    print(f"{name}: {value!r}", flush=True)


def plain(rows):
    return [tuple(row.items()) for row in rows]


async def attempt(name, work):
    try:
        show(name, await work)
    except asyncpg.PostgresError as error:
        show(name, ("error", error.sqlstate, getattr(error, "severity", None), error.message, error.detail, error.hint,
                    getattr(error, "position", None), error.constraint_name, error.table_name))


TYPES = """select true as b, 7::int2 as i2, -7::int4 as i4, 9007199254740993::int8 as i8, 1.5::float4 as f4,
  1e300::float8 as f8, 123456789.000100::numeric as n, 'text'::text as t, 'v'::varchar(5) as v, 'c'::char(4) as c,
  '\\x00ff10'::bytea as y, date '2024-02-29' as d, time '23:59:59.999999' as tm, timestamp '2024-01-01 01:02:03' as ts,
  timestamptz '2024-01-01 01:02:03+02' as tz, interval '1 mon 2 days 3 secs' as iv, '{1,2,null}'::int[] as ia,
  '{a,"b c",null}'::text[] as ta, '{"k": [1]}'::jsonb as j, '2f1b7d6e-0000-4000-8000-00000000abcd'::uuid as u,
  '10.0.0.1'::inet as ip, int4range(1, 9) as r, null::int as nothing, row(1, 'x', null) as rec, 'ünï→😀'::text as uni"""


async def main():
    conn = await asyncpg.connect(URL)
    show("version", tuple(conn.get_server_version()))
    await attempt("types", fetch(conn, TYPES))
    await attempt("customers", fetch(conn, "select * from customers order by id limit 40"))
    for round_ in range(4):  # the second time from the driver's cache
        await attempt(f"cached {round_}", fetch(conn, "select id, email, loyalty from customers where id = $1", round_ + 1))
    await attempt("parameters", fetch(
        conn, "select name, device from customers where tenant_id = $1 and id = any($2) and birth_date > $3 order by id",
        "north", [10, 11, 12, 13], datetime.date(1950, 1, 1)))
    await attempt("round trip", fetch(
        conn, "select $1::text, $2::bytea, $3::uuid, $4::numeric, $5::int[], $6::timestamptz, $7::bool",
        "a'b\\c", b"\x00\x01", uuid.UUID(int=5), decimal.Decimal("1.10"), [1, None, 3],
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), None))
    await attempt("simple", conn.execute("select 1; update products set stock = stock where id < 4; select 2"))

    async def attributes():
        statement = await conn.prepare("select id, email, birth_date, loyalty from customers where city = $1 and id < $2")
        return [(a.name, a.type.name) for a in statement.get_attributes()], [p.name for p in statement.get_parameters()], \
            plain(await statement.fetch("Berlin", 100)), statement.get_statusmsg()
    await attempt("attributes", attributes())

    for name, query in {
        "syntax error": "selec 1", "no such table": "select * from nowhere", "division": "select 1/0",
        "cast": "select 'abc'::int", "unique": "insert into products values (1, 'SKU-0001', 'x', 'x', 1)",
    }.items():
        await attempt(name, fetch(conn, query))

    async def cursor():
        async with conn.transaction():
            walk = await conn.cursor("select id, total from orders order by id limit 50")
            first = await walk.fetch(7)
            await walk.forward(5)
            row = await walk.fetchrow()
            streamed = [r["id"] async for r in conn.cursor("select id from orders order by id limit 120", prefetch=33)]
            return plain(first), tuple(row.items()), streamed[-1], len(streamed)
    await attempt("portal", cursor())

    async def nested():
        async with conn.transaction():
            await conn.execute("insert into reports (title) values ('outer')")
            try:
                async with conn.transaction():
                    await conn.execute("insert into reports (title) values ('inner')")
                    await conn.fetch("select 1/0")
            except asyncpg.DivisionByZeroError:
                pass
            return plain(await conn.fetch("select title from reports order by id"))
    await attempt("savepoint", nested())

    async def rolled_back():
        try:
            async with conn.transaction():
                await conn.execute("delete from reports")
                raise KeyError("given up")
        except KeyError:
            return await conn.fetchval("select count(*) from reports")
    await attempt("rollback", rolled_back())

    async def many():
        await conn.execute("create temp table m (a int primary key, b text)")
        await conn.executemany("insert into m values ($1, $2)", [(n, f"row {n}") for n in range(500)])
        try:
            await conn.executemany("insert into m values ($1, $2)", [(1000, "x"), (1, "twice"), (1001, "y")])
        except asyncpg.UniqueViolationError as error:
            refused = error.sqlstate
        return refused, await conn.fetchrow("select count(*), sum(a), max(a) from m")
    await attempt("executemany", many())

    async def copying():
        out = io.BytesIO()
        tag = await conn.copy_from_query("select id, name, email from customers order by id limit 300", output=out, format="csv", header=True)
        table = io.BytesIO()
        await conn.copy_from_table("products", output=table, format="binary")
        records = [(n, f"copied {n}") for n in range(2000, 4500)]
        into = await conn.copy_records_to_table("m", records=records)
        return tag, out.getvalue(), table.getvalue(), into, await conn.fetchval("select count(*) from m")
    await attempt("copy", copying())

    async def listening():
        heard = asyncio.get_running_loop().create_future()
        await conn.add_listener("weir_channel", lambda _c, _p, channel, payload: heard.done() or heard.set_result((channel, payload)))
        await conn.execute("select pg_notify('weir_channel', 'hello')")
        result = await asyncio.wait_for(heard, 20)
        await conn.reset()
        return result
    await attempt("notify", listening())

    async def timeout():
        try:
            await conn.fetch("select pg_sleep(120)", timeout=0.3)  # the driver sends a cancel request
        except (asyncio.TimeoutError, TimeoutError):
            return await conn.fetchval("select 'still here'")
    await attempt("cancel", timeout())

    async def changed():
        await conn.execute("create temp table shape (a int)")
        await conn.execute("insert into shape values (1)")
        before = await conn.fetch("select * from shape")
        await conn.execute("alter table shape add b text default 'new'")
        return plain(before), plain(await conn.fetch("select * from shape"))
    await attempt("cached plan", changed())
    await conn.close()

    async with asyncpg.create_pool(URL, min_size=2, max_size=4) as pool:
        async def one(n):
            async with pool.acquire() as c:
                return await c.fetchval("select email from customers where id = $1", n)
        await attempt("pool", asyncio.gather(*(one(n) for n in range(1, 40))))
    show("end", "reached")


async def fetch(conn, query, *args):
    return plain(await conn.fetch(query, *args))


asyncio.run(main())
