"""psycopg 3 against a freshly loaded shop. Prints one line a step; direct and through the sidecar they must be alike.

usage: psycopg3.py URL
"""
import asyncio
import datetime
import decimal
import sys
import uuid

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

URL = sys.argv[1]


def show(name, value):
    print(f"{name}: {value!r}", flush=True)


def attempt(name, work):
    """Runs a step; an error of the server is a result like any other."""
    try:
        show(name, work())
    except psycopg.Error as error:
        diag = error.diag
        show(name, ("error", error.sqlstate, diag.severity, diag.message_primary, diag.message_detail,
                    diag.message_hint, diag.statement_position, diag.constraint_name, diag.table_name))


TYPES = """select true as b, 7::int2 as i2, -7::int4 as i4, 9007199254740993::int8 as i8, 1.5::float4 as f4,
  'NaN'::float8 as f8, 123456789.000100::numeric as n, 'text'::text as t, 'v'::varchar(5) as v, 'c'::char(4) as c,
  '\\x00ff10'::bytea as y, date '2024-02-29' as d, time '23:59:59.999999' as tm, timestamp '2024-01-01 01:02:03' as ts,
  timestamptz '2024-01-01 01:02:03+02' as tz, interval '1 mon 2 days 3 secs' as iv, '{1,2,null}'::int[] as ia,
  '{a,"b c",null}'::text[] as ta, '{"k": [1, {"z": null}]}'::jsonb as j, '[1, 2]'::json as js,
  '2f1b7d6e-0000-4000-8000-00000000abcd'::uuid as u, '10.0.0.1/8'::inet as ip, int4range(1, 9) as r, null::int as nothing,
  row(1, 'x', null) as rec, 'ünï→😀'::text as uni, ''::text as empty, repeat('x', 70000) = repeat('x', 70000) as big"""


def results(conn, name, query, params=None, **options):
    def work():
        with conn.cursor(**options) as cur:
            cur.execute(query, params)
            head = [(c.name, c.type_code, c.internal_size, c.precision, c.scale) for c in cur.description or []]
            return cur.statusmessage, head, cur.fetchall() if cur.description else None
    attempt(name, work)


def main():
    conn = psycopg.connect(URL, autocommit=True)
    show("encoding", (conn.info.encoding, conn.info.parameter_status("server_version"),
                      conn.info.parameter_status("standard_conforming_strings"), conn.info.status.name))
    for binary in (False, True):
        label = "binary" if binary else "text"
        results(conn, f"types {label}", TYPES, binary=binary)
        results(conn, f"customers {label}", "select * from customers order by id limit 40", binary=binary)
        results(conn, f"parameters {label}", "select name, loyalty, device from customers where tenant_id = %s and "
                "id between %s and %s and birth_date > %s order by id", ("north", 10, 60, datetime.date(1950, 1, 1)),
                binary=binary)
        results(conn, f"joined {label}", "select c.city, count(*), sum(o.total), max(o.ordered_at) from orders o "
                "join customers c on c.id = o.customer_id group by 1 order by 1", binary=binary)
    # The fifth execution on is a server-side prepared statement.
    for round_ in range(8):
        results(conn, f"prepared {round_}", "select id, email from customers where id = %s", (round_ + 1,))
    results(conn, "round trip", "select %s::text, %s::bytea, %s::jsonb, %s::uuid, %s::numeric, %s::int[], %t",
            ("a'b\\c", b"\x00\x01", Jsonb({"a": 1}), uuid.UUID(int=5), decimal.Decimal("1.10"), [1, None, 3], "as text"))
    results(conn, "two statements", "select 1; select 2 as two")
    results(conn, "no result", "")
    results(conn, "comment only", "-- nothing")
    results(conn, "dict", "select id, name from products order by id limit 2", row_factory=dict_row)

    for name, query in {
        "syntax error": "selec 1",
        "no such table": "select * from nowhere",
        "no such column": "select nme from customers",
        "division": "select 1/0",
        "cast": "select 'abc'::int",
        "unique": "insert into products values (1, 'SKU-0001', 'x', 'x', 1)",
        "check": "insert into products values (900, 'SKU-900', 'x', 'x', -1)",
        "foreign key": "delete from customers where id = 1",
        "not null": "insert into reports (id, created_at) values (1, '2024-01-01')",
    }.items():
        results(conn, name, query)

    notices = []
    conn.add_notice_handler(lambda d: notices.append((d.severity, d.sqlstate, d.message_primary)))
    results(conn, "notice", "drop table if exists never_there")
    show("notices", notices)

    # Transactions, savepoints, an aborted block.
    def transaction():
        with conn.transaction():
            conn.execute("insert into reports (title, revenue) values ('one', 1.5)")
            try:
                with conn.transaction():
                    conn.execute("insert into reports (title) values ('inner')")
                    conn.execute("select 1/0")
            except psycopg.errors.DivisionByZero:
                pass
            return conn.execute("select title, revenue from reports order by id").fetchall()
    attempt("savepoint", transaction)

    def aborted():
        try:
            with conn.transaction():
                conn.execute("delete from reports")
                conn.execute("nonsense")
        except psycopg.errors.SyntaxError as error:
            return error.sqlstate, conn.execute("select count(*) from reports").fetchone()
    attempt("aborted block", aborted)
    results(conn, "returning", "update products set stock = stock + 1 where id <= 3 returning id, stock")
    results(conn, "cte", "with gone as (delete from reports returning title) select count(*), min(title) from gone")

    def server_cursor():
        with conn.transaction(), conn.cursor(name="walk", scrollable=True) as cur:
            cur.itersize = 7
            cur.execute("select id from orders order by id limit 30")
            first = cur.fetchmany(5)
            cur.scroll(10)
            return first, cur.fetchmany(3), [row for row in cur][-1]
    attempt("server cursor", server_cursor)

    def pipeline():
        with conn.pipeline():
            cursors = [conn.execute("select %s::int * 2", (n,)) for n in range(10)]
        return [c.fetchone() for c in cursors]
    attempt("pipeline", pipeline)

    def broken_pipeline():
        seen = []
        try:
            with conn.pipeline() as pipe:
                conn.execute("create temp table if not exists p (a int primary key)")
                conn.execute("insert into p values (1)")
                pipe.sync()
                conn.execute("insert into p values (2)")
                conn.execute("insert into p values (1)")
                conn.execute("insert into p values (3)")
                pipe.sync()
        except psycopg.Error as error:
            seen.append((type(error).__name__, error.sqlstate))
        return seen, conn.execute("select a from p order by a").fetchall()
    attempt("broken pipeline", broken_pipeline)

    for fmt in ("text", "csv", "binary"):
        def copy_out():
            with conn.cursor() as cur, cur.copy(
                sql.SQL("copy (select id, name, loyalty, profile from customers order by id limit 200) to stdout "
                        "(format {})").format(sql.SQL(fmt))) as copy:
                return b"".join(bytes(block) for block in copy)
        attempt(f"copy out {fmt}", copy_out)

    def copy_in():
        conn.execute("create temp table incoming (a int, b text, c timestamptz)")
        with conn.cursor() as cur:
            with cur.copy("copy incoming from stdin") as copy:
                for n in range(3000):
                    copy.write_row((n, None if n % 7 == 0 else f"row\t{n}\n\\", datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)))
            tag = cur.statusmessage
            with cur.copy("copy incoming (a, b) from stdin (format binary)") as copy:
                copy.set_types(["int4", "text"])
                copy.write_row((5000, "binary"))
        return tag, conn.execute("select count(*), sum(a), count(b), max(length(b)) from incoming").fetchone()
    attempt("copy in", copy_in)

    def copy_failed():
        with conn.cursor() as cur, cur.copy("copy incoming from stdin") as copy:
            copy.write("not a number\tx\t2024-01-01\n")
    attempt("copy in, bad data", copy_failed)

    def copy_given_up():
        try:
            with conn.cursor() as cur, cur.copy("copy incoming from stdin") as copy:
                copy.write("1\tx\t2024-01-01\n")
                raise RuntimeError("the client gives up")
        except RuntimeError:
            return conn.execute("select count(*) from incoming where b = 'x'").fetchone()
    attempt("copy in, given up", copy_given_up)

    def notify():
        conn.execute("listen weir_channel")
        with psycopg.connect(URL, autocommit=True) as other:
            other.execute("select pg_notify('weir_channel', 'payload')")
        return [(n.channel, n.payload) for n in conn.notifies(timeout=20, stop_after=1)]
    attempt("notify", notify)
    conn.execute("unlisten *")

    def cancel():
        import threading
        running = threading.Event()

        def stop():
            with psycopg.connect(URL, autocommit=True) as other:
                waiting = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(120%'"
                while other.execute(waiting).fetchone()[0] == 0:
                    pass
            conn.cancel_safe(timeout=20)
            running.set()
        thread = threading.Thread(target=stop)
        thread.start()
        try:
            conn.execute("select pg_sleep(120)")
        except psycopg.errors.QueryCanceled as error:
            result = (error.sqlstate, error.diag.message_primary)
        thread.join()
        return result, running.is_set(), conn.execute("select 'still here'").fetchone()
    attempt("cancel", cancel)

    def settings():
        conn.execute("set search_path = pg_catalog, public")
        conn.execute("set timezone = 'Asia/Tokyo'")
        shown = conn.execute("show search_path").fetchone(), conn.execute("select timestamptz '2024-01-01 00:00:00+00'").fetchone()
        status = conn.info.parameter_status("TimeZone")
        conn.execute("reset all")
        return str(shown), status, conn.execute("show search_path").fetchone()
    attempt("settings", settings)

    def two_phase_less():
        conn.execute("prepare sqlp (int) as select id, name from products where id = $1")
        rows = conn.execute("execute sqlp(3)").fetchall()
        conn.execute("deallocate sqlp")
        return rows
    attempt("sql prepare", two_phase_less)

    def large():
        text = "x" * 3_000_000
        return conn.execute("select length(%s::text), md5(%s::text)", (text, text)).fetchone()
    attempt("large parameter", large)

    def many_rows():
        cur = conn.execute("select o.*, c.name from orders o join customers c on c.id = o.customer_id order by o.id")
        rows = cur.fetchall()
        return len(rows), rows[0], rows[-1]
    attempt("many rows", many_rows)
    conn.close()

    async def asynchronous():
        async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as one:
            rows = await (await one.execute("select id, email from customers order by id limit 3")).fetchall()
            streamed = [row async for row in one.cursor().stream("select id from products order by id limit 4")]
            return rows, streamed
    attempt("async", lambda: asyncio.run(asynchronous()))
    show("end", "reached")


main()
