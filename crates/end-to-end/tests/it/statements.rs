//! The list: statements, and what a governed session must get for them.

/// What must happen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect {
    /// A refusal of Weir; nothing of the statement ran.
    Refused,
    /// These rows (NULL is `~`, columns split by `|`).
    Lines(&'static [&'static str]),
    /// This text of a COPY.
    Copied(&'static str),
    /// An error of the server with this SQLSTATE, without the value.
    Error(&'static str),
    /// Refused or answered, as the documentation of the construct says: no canary in any case.
    Harmless,
}

use Expect::{Copied, Error, Harmless, Lines, Refused};

/// One statement (or several in one Query).
pub(crate) struct Attack {
    pub(crate) sql: &'static str,
    pub(crate) expect: Expect,
}

const fn attack(sql: &'static str, expect: Expect) -> Attack {
    Attack { sql, expect }
}

const MAILS: &[&str] = &["a***@example.com", "b***@example.org", "c***@example.net"];

/// Masked columns, whatever they are wrapped in.
pub(crate) const MASKS: &[Attack] = &[
    attack("SELECT email FROM customers ORDER BY id", Lines(MAILS)),
    attack(
        "SELECT email, phone, ssn, salary, born FROM customers ORDER BY id",
        Lines(&[
            "a***@example.com|***********10|~|0|1987-01-01",
            "b***@example.org|***********20|~|0|1987-01-01",
            "c***@example.net|~|~|~|~",
        ]),
    ),
    attack(
        "SELECT * FROM customers WHERE id = 3",
        Lines(&["3|Cyd|c***@example.net|~|~|~|~|~|30.00"]),
    ),
    attack("TABLE b.t", Lines(&["1|~"])),
    attack("SELECT email AS name FROM customers ORDER BY id", Lines(MAILS)),
    attack("SELECT x FROM customers AS c(i, n, x) ORDER BY i", Lines(MAILS)),
    attack(
        "SELECT customers.email FROM customers ORDER BY customers.id",
        Lines(MAILS),
    ),
    attack(
        "SELECT public.customers.email FROM public.customers ORDER BY public.customers.id",
        Lines(MAILS),
    ),
    attack("SELECT email || '' FROM customers ORDER BY id", Lines(MAILS)),
    attack(
        "SELECT upper(email) FROM customers WHERE id = 1",
        Lines(&["A***@EXAMPLE.COM"]),
    ),
    attack(
        "SELECT email::varchar(99)::text FROM customers WHERE id = 1",
        Lines(&["a***@example.com"]),
    ),
    attack(
        "SELECT email COLLATE \"C\" FROM customers WHERE id = 1",
        Lines(&["a***@example.com"]),
    ),
    attack(
        "SELECT string_agg(email, ',' ORDER BY id) FROM customers",
        Lines(&["a***@example.com,b***@example.org,c***@example.net"]),
    ),
    attack(
        "SELECT array_agg(email ORDER BY id) FROM customers",
        Lines(&["{a***@example.com,b***@example.org,c***@example.net}"]),
    ),
    attack(
        "SELECT max(salary), min(salary), sum(salary), count(ssn) FROM customers",
        Lines(&["0|0|0|0"]),
    ),
    attack(
        "SELECT first_value(email) OVER (ORDER BY id) FROM customers LIMIT 1",
        Lines(&["a***@example.com"]),
    ),
    attack(
        "SELECT json_build_object('m', email) FROM customers WHERE id = 1",
        Lines(&["{\"m\" : \"a***@example.com\"}"]),
    ),
    attack(
        "SELECT (SELECT email FROM customers WHERE id = 1)",
        Lines(&["a***@example.com"]),
    ),
    attack(
        "SELECT ARRAY(SELECT email FROM customers ORDER BY id)",
        Lines(&["{a***@example.com,b***@example.org,c***@example.net}"]),
    ),
    attack(
        "WITH x AS MATERIALIZED (SELECT id, email FROM customers) SELECT email FROM x ORDER BY id",
        Lines(MAILS),
    ),
    attack(
        "WITH RECURSIVE x(i, m) AS (SELECT id, email FROM customers WHERE id = 1 UNION ALL SELECT i + 1, email FROM x JOIN customers c ON c.id = i + 1) SELECT m FROM x ORDER BY i",
        Lines(MAILS),
    ),
    attack(
        "SELECT email FROM customers UNION SELECT ssn FROM customers ORDER BY 1",
        Lines(&["a***@example.com", "b***@example.org", "c***@example.net", "~"]),
    ),
    attack(
        "SELECT c.email FROM scratch s LEFT JOIN customers c ON c.id = s.id ORDER BY s.id",
        Lines(MAILS),
    ),
    attack(
        "SELECT l.email FROM scratch s, LATERAL (SELECT email FROM customers c WHERE c.id = s.id) l ORDER BY s.id",
        Lines(MAILS),
    ),
    attack(
        "SELECT x.email FROM (SELECT id, email FROM customers) x ORDER BY id",
        Lines(MAILS),
    ),
    attack(
        "SELECT id, email FROM customers GROUP BY id ORDER BY id",
        Lines(&["1|a***@example.com", "2|b***@example.org", "3|c***@example.net"]),
    ),
    attack(
        "SELECT DISTINCT ON (born) id FROM customers ORDER BY born, id",
        Lines(&["1", "3"]),
    ),
    attack(
        "SELECT count(*) FROM customers GROUP BY GROUPING SETS ((ssn), ()) ORDER BY 1",
        Lines(&["3", "3"]),
    ),
    attack(
        "SELECT * FROM customers NATURAL JOIN (SELECT 1 AS id) x WHERE false",
        Harmless,
    ),
    // Whole rows and documents of rows.
    attack("SELECT t FROM b.t", Lines(&["(1,)"])),
    attack("SELECT t::text FROM b.t", Lines(&["(1,)"])),
    attack(
        "SELECT row_to_json(t) FROM b.t",
        Lines(&["{\"id\":1,\"v\":null}"]),
    ),
    attack(
        "SELECT to_jsonb(t) FROM b.t",
        Lines(&["{\"v\": null, \"id\": 1}"]),
    ),
    attack("SELECT json_agg(t) FROM b.t", Lines(&["[{\"id\":1,\"v\":null}]"])),
    attack("SELECT (array_agg(t))[1] FROM b.t", Lines(&["(1,)"])),
    attack("SELECT (t).v FROM b.t", Lines(&["~"])),
    attack("SELECT (t).* FROM b.t", Lines(&["1|~"])),
    attack("SELECT t.v FROM b.t t", Lines(&["~"])),
    attack("SELECT v(t) FROM b.t", Harmless),
    attack("SELECT format('%s', t) FROM b.t", Lines(&["(1,)"])),
    attack("SELECT row_to_json(c) FROM customers c", Refused),
    attack("SELECT c FROM customers c", Refused),
    attack("SELECT xmlforest(email) FROM customers", Harmless),
    attack("SELECT xmlelement(name x, email) FROM customers", Harmless),
    attack("SELECT ROW(c.*) FROM customers c", Harmless),
    attack(
        "SELECT * FROM jsonb_each((SELECT to_jsonb(t) FROM b.t))",
        Harmless,
    ),
    attack("SELECT * FROM unnest(ARRAY(SELECT t FROM b.t)) x", Harmless),
    // Tokens: only as they are.
    attack("SELECT card FROM customers WHERE id = 3", Lines(&["~"])),
    attack("SELECT upper(card) FROM customers", Refused),
    attack("SELECT id FROM customers WHERE card = 'x'", Refused),
    attack("SELECT id FROM customers ORDER BY card", Refused),
    attack("SELECT count(card) FROM customers", Refused),
    attack("SELECT card FROM customers UNION SELECT 'x'", Refused),
    attack(
        "SELECT card FROM (SELECT card FROM customers OFFSET 0) x WHERE card LIKE 'c%'",
        Refused,
    ),
    attack(
        "CREATE TEMP TABLE mine AS SELECT card FROM customers; TABLE mine",
        Refused,
    ),
    attack("SELECT card INTO TEMP mine FROM customers; TABLE mine", Refused),
    attack(
        "CREATE TEMP TABLE mine (c text); INSERT INTO mine SELECT card FROM customers; TABLE mine",
        Refused,
    ),
    attack(
        "PREPARE p AS SELECT card FROM customers; CREATE TEMP TABLE mine AS EXECUTE p; TABLE mine; DEALLOCATE p",
        Refused,
    ),
    attack(
        "CREATE TEMP VIEW mine AS SELECT card FROM customers; TABLE mine",
        Refused,
    ),
    attack("SELECT (SELECT card FROM customers WHERE id = 1)", Refused),
    attack("SELECT DISTINCT card FROM customers", Harmless),
    attack("SELECT card FROM customers GROUP BY card", Refused),
    attack("SELECT min(card) OVER () FROM customers", Refused),
    attack("SELECT x.card FROM (SELECT card FROM customers) x", Harmless),
    attack("SELECT * FROM customers", Harmless),
    attack("SELECT customers.* FROM customers", Harmless),
    attack(
        "BEGIN; UPDATE customers SET name = name WHERE id = 1 RETURNING card; ROLLBACK",
        Harmless,
    ),
    attack(
        "BEGIN; UPDATE customers SET name = card WHERE id = 1 RETURNING name; ROLLBACK",
        Refused,
    ),
    attack(
        "WITH u AS (UPDATE customers SET name = name WHERE id = 1 RETURNING card) SELECT * FROM u",
        Refused,
    ),
    attack(
        "BEGIN; DECLARE x CURSOR FOR SELECT card FROM customers; FETCH ALL x; COMMIT",
        Harmless,
    ),
    attack(
        "PREPARE p AS SELECT card FROM customers; EXECUTE p; DEALLOCATE p",
        Harmless,
    ),
    attack("EXPLAIN (ANALYZE, VERBOSE) SELECT card FROM customers", Harmless),
    // COPY and cursors.
    attack(
        "COPY customers (id, email, ssn) TO STDOUT",
        Copied("1\ta***@example.com\t\\N\n2\tb***@example.org\t\\N\n3\tc***@example.net\t\\N\n"),
    ),
    attack(
        "COPY (SELECT email FROM customers ORDER BY id) TO STDOUT WITH (FORMAT csv)",
        Copied("a***@example.com\nb***@example.org\nc***@example.net\n"),
    ),
    attack("COPY b.t TO STDOUT", Copied("1\t\\N\n")),
    attack("COPY b.t TO STDOUT WITH (FORMAT binary)", Harmless),
    attack("COPY customers TO STDOUT", Refused),
    attack("COPY customers (card) TO STDOUT", Refused),
    attack(
        "COPY customers (id, card) TO STDOUT WITH (FORMAT binary)",
        Refused,
    ),
    attack("COPY (SELECT card FROM customers) TO STDOUT", Refused),
    attack("COPY (SELECT * FROM customers) TO STDOUT", Refused),
    attack(
        "COPY (UPDATE customers SET name = name WHERE id = 1 RETURNING card) TO STDOUT",
        Refused,
    ),
    attack(
        "SELECT card FROM customers UNION ALL SELECT card FROM customers",
        Refused,
    ),
    attack(
        "SELECT card FROM customers c JOIN customers d USING (card)",
        Refused,
    ),
    attack("SELECT array_agg(card) FROM customers", Refused),
    attack("SELECT card::text FROM customers", Refused),
    attack("SELECT card FROM customers ORDER BY 1", Refused),
    attack("VALUES ((SELECT card FROM customers LIMIT 1))", Refused),
    attack("SELECT c FROM (SELECT card FROM customers) c", Refused),
    attack(
        "SELECT row_to_json(c) FROM (SELECT card FROM customers) c",
        Refused,
    ),
    attack("SELECT x FROM customers, LATERAL (SELECT card) l(x)", Harmless),
    attack(
        "WITH x AS (SELECT card FROM customers) SELECT card FROM x",
        Harmless,
    ),
    attack(
        "WITH x(y) AS (SELECT card FROM customers) SELECT y || 'x' FROM x",
        Refused,
    ),
    attack("COPY people TO STDOUT", Harmless),
    attack(
        "BEGIN; DECLARE x CURSOR FOR SELECT email FROM customers ORDER BY id; FETCH ALL x; COMMIT",
        Lines(MAILS),
    ),
    attack(
        "BEGIN; DECLARE x SCROLL CURSOR WITH HOLD FOR SELECT email FROM customers ORDER BY id; COMMIT; FETCH LAST x; CLOSE x",
        Lines(&["c***@example.net"]),
    ),
    attack(
        "BEGIN; DECLARE x BINARY CURSOR FOR SELECT salary FROM customers; FETCH ALL x; COMMIT",
        Harmless,
    ),
    attack(
        "BEGIN; DECLARE x CURSOR WITH HOLD FOR SELECT card FROM customers; COMMIT; FETCH ALL x; CLOSE x",
        Refused,
    ),
    attack(
        "PREPARE p AS SELECT email FROM customers ORDER BY id; EXECUTE p; DEALLOCATE p",
        Lines(MAILS),
    ),
    // Views, copies, children.
    attack(
        "SELECT id, contact FROM customer_view ORDER BY id",
        Lines(&["1|a***@example.com", "2|b***@example.org", "3|c***@example.net"]),
    ),
    attack("SELECT * FROM customer_view", Harmless),
    attack("SELECT ssn FROM customer_view", Harmless),
    attack("SELECT * FROM customer_rows", Harmless),
    attack("SELECT (c).email FROM customer_rows", Harmless),
    attack("SELECT email FROM customer_copy", Harmless),
    attack("SELECT secret FROM people ORDER BY id", Lines(&["~", "~"])),
    attack("SELECT secret FROM ONLY people", Lines(&["~"])),
    attack("SELECT secret FROM people_abroad", Lines(&["~"])),
    // Errors that would repeat a value.
    attack("SELECT email::int FROM customers", Error("22P02")),
    attack("SELECT id FROM customers WHERE email::int > 0", Error("22P02")),
    attack("SELECT ('{' || email)::json FROM customers", Error("22P02")),
    attack(
        "SELECT email::xml FROM customers WHERE ('<' || email)::xml IS NOT NULL",
        Harmless,
    ),
    attack("UPDATE customers SET balance = -1 WHERE id = 1", Error("23514")),
    attack(
        "INSERT INTO customers (id, name, email) VALUES (1, 'x', 'y')",
        Error("23505"),
    ),
    attack(
        "INSERT INTO customers (id, name) VALUES (77, 'x')",
        Error("23502"),
    ),
    attack("SELECT name(c) FROM customers c", Harmless),
    // Oracles: a predicate sees the mask.
    attack("SELECT id FROM customers WHERE email LIKE 'ann%'", Lines(&[])),
    attack("SELECT id FROM customers WHERE email ~ '^ann'", Lines(&[])),
    attack("SELECT id FROM customers WHERE ssn IS NOT NULL", Lines(&[])),
    attack("SELECT id FROM customers WHERE salary > 1", Lines(&[])),
    attack(
        "SELECT id FROM customers WHERE born = '1987-06-15'::date + 0 AND false",
        Lines(&[]),
    ),
    attack(
        "SELECT id FROM customers ORDER BY ssn DESC NULLS LAST, id",
        Lines(&["1", "2", "3"]),
    ),
    attack(
        "SELECT CASE WHEN email LIKE 'ann.c%' THEN 1 / (id - id) ELSE 0 END FROM customers",
        Lines(&["0", "0", "0"]),
    ),
    attack(
        "SELECT id FROM customers WHERE email LIKE 'ann.c%' AND 1 / (id - id) = 1",
        Harmless,
    ),
    attack(
        "SELECT count(*) FROM customers a JOIN customers b ON a.ssn = b.ssn",
        Lines(&["0"]),
    ),
    attack(
        "SELECT length(email), left(email, 5) FROM customers WHERE id = 1",
        Lines(&["16|a***@"]),
    ),
    attack("EXPLAIN SELECT id FROM customers WHERE ssn = 'x'", Harmless),
    attack(
        "EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF) SELECT email, ssn FROM customers",
        Harmless,
    ),
    // What enters a temporary table is masked before.
    attack(
        "CREATE TEMP TABLE mine AS SELECT id, email FROM customers; SELECT email FROM mine ORDER BY id; DROP TABLE mine",
        Harmless,
    ),
    attack(
        "SELECT id, email INTO TEMP mine FROM customers; SELECT email FROM mine ORDER BY id; DROP TABLE mine",
        Harmless,
    ),
    // Copying elsewhere.
    attack(
        "INSERT INTO scratch SELECT id + 100, email FROM customers",
        Refused,
    ),
    attack(
        "UPDATE scratch SET body = c.email FROM customers c WHERE c.id = scratch.id",
        Refused,
    ),
    attack("UPDATE customers SET name = email WHERE id = 1", Refused),
    attack("UPDATE customers SET card = 'x' WHERE id = 1", Refused),
    attack(
        "MERGE INTO scratch s USING customers c ON c.id = s.id WHEN MATCHED THEN UPDATE SET body = c.ssn",
        Refused,
    ),
    attack(
        "INSERT INTO scratch VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET body = (SELECT email FROM customers LIMIT 1)",
        Refused,
    ),
    // RETURNING.
    attack(
        "BEGIN; UPDATE customers SET name = name WHERE id = 1 RETURNING email, ssn, salary; ROLLBACK",
        Lines(&["a***@example.com|~|0"]),
    ),
    attack(
        "BEGIN; UPDATE customers SET name = name WHERE id = 3 RETURNING *; ROLLBACK",
        Lines(&["3|Cyd|c***@example.net|~|~|~|~|~|30.00"]),
    ),
    attack(
        "BEGIN; DELETE FROM customers WHERE id = 3 RETURNING email; ROLLBACK",
        Lines(&["c***@example.net"]),
    ),
    attack(
        "BEGIN; INSERT INTO customers (id, name, email) VALUES (9, 'x', 'new@x.org') RETURNING email; ROLLBACK",
        Lines(&["n***@x.org"]),
    ),
    attack(
        "BEGIN; UPDATE scratch s SET body = body FROM customers c WHERE c.id = s.id AND s.id = 1 RETURNING c.email; ROLLBACK",
        Lines(&["a***@example.com"]),
    ),
];

/// Rows that a filter hides.
pub(crate) const FILTERS: &[Attack] = &[
    attack("SELECT id FROM orders ORDER BY id", Lines(&["1", "2", "3"])),
    attack("SELECT count(*) FROM orders", Lines(&["3"])),
    attack("SELECT count(*) FROM orders WHERE tenant = 'b'", Lines(&["0"])),
    attack(
        "SELECT count(*) FROM orders WHERE true OR tenant = 'b'",
        Lines(&["3"]),
    ),
    attack(
        "SELECT count(*) FROM orders o FULL JOIN (SELECT 1 AS x) y ON false",
        Lines(&["4"]),
    ),
    attack("SELECT max(amount) FROM orders", Lines(&["6"])),
    attack("SELECT count(*) FROM ONLY orders", Lines(&["3"])),
    attack(
        "SELECT count(*) FROM orders TABLESAMPLE SYSTEM (100)",
        Lines(&["3"]),
    ),
    attack(
        "SELECT id FROM orders WHERE ctid IS NOT NULL ORDER BY id",
        Lines(&["1", "2", "3"]),
    ),
    attack(
        "SELECT o.note FROM lines l JOIN orders o ON o.id = l.order_id WHERE l.product = 'pen'",
        Lines(&["10"]),
    ),
    attack(
        "SELECT EXISTS (SELECT 1 FROM orders WHERE id = 100)",
        Lines(&["f"]),
    ),
    attack("COPY orders (id) TO STDOUT", Copied("1\n2\n3\n")),
    attack(
        "SELECT json_agg(id ORDER BY id) FROM orders",
        Lines(&["[1, 2, 3]"]),
    ),
    // The client's expression on hidden rows.
    attack(
        "SELECT id FROM orders WHERE note::int > 0 ORDER BY id",
        Lines(&["1", "2"]),
    ),
    attack(
        "SELECT id FROM orders WHERE 1 / (amount - 881177) < 0",
        Lines(&[]),
    ),
    attack(
        "SELECT n FROM (SELECT note::int AS n, count(*) FROM orders GROUP BY note) q WHERE n > 0 ORDER BY n",
        Lines(&["10", "20"]),
    ),
    attack("SELECT id FROM orders WHERE note LIKE 'canar\\'", Harmless),
    attack("EXPLAIN SELECT id FROM orders WHERE note LIKE 'c%\\'", Harmless),
    attack("EXPLAIN SELECT id FROM orders WHERE note = 'x'", Harmless),
    attack("EXPLAIN ANALYZE SELECT id FROM orders", Refused),
    attack(
        "SELECT id FROM orders WHERE id = 100 AND (note::date) IS NOT NULL",
        Lines(&[]),
    ),
    attack("SELECT id FROM orders WHERE note ~ '(' AND id = 100", Harmless),
    attack(
        "SELECT id FROM orders o WHERE EXISTS (SELECT 1 FROM scratch s WHERE s.id = o.note::int)",
        Lines(&[]),
    ),
    attack(
        "SELECT s.id, 10 / coalesce(o.amount, 1) FROM scratch s LEFT JOIN orders o ON o.id = s.id WHERE 10 / coalesce(o.amount, 1) >= 0 ORDER BY s.id",
        Lines(&["1|2", "2|1", "3|10"]),
    ),
    attack("SELECT count(*) FROM orders HAVING count(*) > 3", Lines(&[])),
    // Writing.
    attack(
        "BEGIN; UPDATE orders SET amount = 0 WHERE id = 100; SELECT count(*) FROM orders WHERE amount = 0; ROLLBACK",
        Lines(&["0"]),
    ),
    attack(
        "BEGIN; DELETE FROM orders WHERE id >= 100 RETURNING note; ROLLBACK",
        Lines(&[]),
    ),
    attack(
        "BEGIN; UPDATE orders SET note = note WHERE note::int > 0 RETURNING id; ROLLBACK",
        Lines(&["1", "2"]),
    ),
    attack("UPDATE orders SET tenant = 'b' WHERE id = 1", Refused),
    attack("INSERT INTO orders (id, tenant) VALUES (9, 'b')", Refused),
    attack("INSERT INTO orders (id) VALUES (9)", Refused),
    attack(
        "INSERT INTO orders (id, tenant) VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET tenant = 'b'",
        Refused,
    ),
    attack(
        "BEGIN; INSERT INTO orders (id, tenant) VALUES (9, 'a') RETURNING id; ROLLBACK",
        Lines(&["9"]),
    ),
    attack(
        "BEGIN; INSERT INTO orders (id, tenant) VALUES (100, 'a') ON CONFLICT (id) DO UPDATE SET amount = 0 RETURNING note; ROLLBACK",
        Harmless,
    ),
    attack(
        "MERGE INTO orders o USING (SELECT 100 AS id) s ON o.id = s.id WHEN MATCHED THEN UPDATE SET amount = 0",
        Harmless,
    ),
    attack(
        "MERGE INTO orders o USING (SELECT 100 AS id) s ON o.id = s.id WHEN MATCHED THEN DELETE",
        Harmless,
    ),
    attack("SELECT id FROM orders WHERE id = 100 FOR UPDATE", Lines(&[])),
    attack("TRUNCATE orders", Refused),
];

/// What no rule opens: refused, however it is asked for.
pub(crate) const CLOSED: &[Attack] = &[
    attack("SELECT * FROM payroll", Refused),
    attack("SELECT count(*) FROM payroll", Refused),
    attack("SELECT 1 FROM payroll WHERE false", Refused),
    attack("TABLE payroll", Refused),
    attack("SELECT * FROM ONLY payroll", Refused),
    attack("SELECT * FROM public.\"payroll\"", Refused),
    attack("SELECT * FROM U&\"payr\\006fll\"", Refused),
    attack("SELECT * FROM PayRoll", Refused),
    attack("SELECT/**/*/**/FROM--\npayroll", Refused),
    attack("SELECT * FROM payroll_view", Refused),
    attack("SELECT * FROM c.t", Refused),
    attack("SELECT 1 WHERE EXISTS (SELECT FROM payroll)", Refused),
    attack("SELECT (SELECT employee FROM payroll LIMIT 1)", Refused),
    attack("SELECT 1 ORDER BY (SELECT pay FROM payroll LIMIT 1)", Refused),
    attack("SELECT 1 LIMIT (SELECT count(*) FROM payroll)", Refused),
    attack("SELECT ARRAY(SELECT pay FROM payroll)", Refused),
    attack("VALUES ((SELECT employee FROM payroll LIMIT 1))", Refused),
    attack(
        "SELECT CASE WHEN (SELECT count(*) FROM payroll) > 0 THEN 1 END",
        Refused,
    ),
    attack(
        "SELECT count(*) OVER (ORDER BY (SELECT pay FROM payroll LIMIT 1))",
        Refused,
    ),
    attack(
        "SELECT count(*) FILTER (WHERE EXISTS (SELECT FROM payroll)) FROM scratch",
        Refused,
    ),
    attack(
        "SELECT s.id FROM scratch s JOIN scratch r ON EXISTS (SELECT FROM payroll)",
        Refused,
    ),
    attack(
        "SELECT id FROM scratch GROUP BY id HAVING EXISTS (SELECT FROM payroll)",
        Refused,
    ),
    attack(
        "SELECT * FROM scratch, LATERAL (SELECT employee FROM payroll) x",
        Refused,
    ),
    attack("WITH x AS (SELECT * FROM payroll) SELECT 1", Refused),
    attack("SELECT 1 UNION ALL SELECT pay FROM payroll", Refused),
    attack("SELECT 1; SELECT * FROM payroll", Refused),
    attack("COPY payroll TO STDOUT", Refused),
    attack("COPY (SELECT employee FROM payroll) TO STDOUT", Refused),
    attack("COPY (TABLE payroll) TO STDOUT", Refused),
    attack(
        "BEGIN; DECLARE x CURSOR FOR TABLE payroll; FETCH ALL x; COMMIT",
        Refused,
    ),
    attack("PREPARE p AS SELECT * FROM payroll", Refused),
    attack("EXPLAIN SELECT * FROM payroll", Refused),
    attack("EXPLAIN ANALYZE SELECT * FROM payroll", Refused),
    attack("LOCK TABLE payroll", Refused),
    attack(
        "INSERT INTO scratch SELECT id + 50, employee FROM payroll",
        Refused,
    ),
    attack("INSERT INTO payroll VALUES (5, 'x', 1)", Refused),
    attack(
        "INSERT INTO scratch VALUES (50, 'x') RETURNING (SELECT employee FROM payroll LIMIT 1)",
        Refused,
    ),
    attack(
        "INSERT INTO scratch VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET body = (SELECT employee FROM payroll LIMIT 1)",
        Refused,
    ),
    attack(
        "UPDATE scratch SET body = (SELECT employee FROM payroll LIMIT 1) WHERE id = 1",
        Refused,
    ),
    attack(
        "UPDATE scratch SET body = p.employee FROM payroll p WHERE p.id = scratch.id",
        Refused,
    ),
    attack("UPDATE payroll SET pay = 1 WHERE id = 1", Refused),
    attack("DELETE FROM payroll WHERE id = 1", Refused),
    attack(
        "DELETE FROM scratch USING payroll p WHERE p.id = scratch.id",
        Refused,
    ),
    attack(
        "MERGE INTO scratch s USING payroll p ON p.id = s.id WHEN MATCHED THEN DELETE",
        Refused,
    ),
    attack(
        "MERGE INTO payroll p USING scratch s ON p.id = s.id WHEN MATCHED THEN DELETE",
        Refused,
    ),
    attack("CREATE TEMP TABLE mine AS TABLE payroll", Refused),
    attack("CREATE TEMP TABLE mine AS SELECT employee FROM payroll", Refused),
    attack("SELECT employee INTO TEMP mine FROM payroll", Refused),
    attack("CREATE TEMP VIEW mine AS SELECT employee FROM payroll", Refused),
    attack("CREATE VIEW mine AS SELECT employee FROM payroll", Refused),
    attack(
        "CREATE TEMP TABLE mine (LIKE payroll); INSERT INTO mine TABLE payroll",
        Refused,
    ),
    attack("CREATE TEMP TABLE mine () INHERITS (payroll)", Refused),
    // SQL in strings.
    attack(
        "SELECT query_to_xml('select email from customers', true, true, '')",
        Refused,
    ),
    attack("SELECT table_to_xml('payroll', true, true, '')", Refused),
    attack("SELECT table_to_xml('customers', true, true, '')", Refused),
    attack("SELECT schema_to_xml('public', true, true, '')", Refused),
    attack("SELECT database_to_xml(true, true, '')", Refused),
    attack(
        "SELECT * FROM ts_stat('select to_tsvector(employee) from payroll')",
        Refused,
    ),
    attack(
        "SELECT ts_rewrite('a'::tsquery, 'select ''a''::tsquery, ''b''::tsquery from payroll')",
        Refused,
    ),
    attack(
        "BEGIN; DECLARE x CURSOR FOR SELECT email FROM customers; SELECT cursor_to_xml('x', 10, true, true, ''); COMMIT",
        Harmless,
    ),
    // Code whose body nobody sees.
    attack("SELECT wipe()", Refused),
    attack("SELECT id FROM scratch WHERE wipe() = 1", Refused),
    attack("SELECT shout(email) FROM customers", Refused),
    attack("SELECT id FROM customers WHERE shout(email) IS NOT NULL", Refused),
    attack("SELECT * FROM all_mails()", Refused),
    attack("SELECT gather(name) FROM customers", Refused),
    attack("SELECT id FROM customers WHERE name <<<>>> 'x'", Refused),
    attack(
        "SELECT id FROM customers WHERE name OPERATOR(public.<<<>>>) 'x'",
        Refused,
    ),
    attack("CALL purge()", Refused),
    attack("DO $$ BEGIN DELETE FROM scratch; END $$", Refused),
    attack(
        "DO 'BEGIN RAISE NOTICE ''%'', (SELECT max(employee) FROM payroll); END'",
        Refused,
    ),
    // Statistics, other sessions, server.
    attack(
        "SELECT most_common_vals FROM pg_stats WHERE tablename = 'orders'",
        Refused,
    ),
    attack("SELECT stavalues1 FROM pg_statistic", Refused),
    attack("SELECT * FROM pg_stats_ext", Refused),
    attack("SELECT rolpassword FROM pg_authid", Refused),
    attack("SELECT * FROM pg_shadow", Refused),
    attack("SELECT data FROM pg_largeobject", Refused),
    attack("SELECT lo_get(1)", Refused),
    attack("SELECT lo_create(0)", Refused),
    attack("SELECT lo_import('/etc/passwd')", Refused),
    attack("SELECT pg_read_file('/etc/passwd')", Refused),
    attack("SELECT pg_ls_dir('.')", Refused),
    attack("SELECT pg_stat_file('PG_VERSION')", Refused),
    attack(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE false",
        Refused,
    ),
    attack("SELECT pg_reload_conf()", Refused),
    attack("SELECT pg_logical_emit_message(true, 'x', 'y')", Refused),
    attack(
        "SELECT pg_create_logical_replication_slot('x', 'test_decoding')",
        Refused,
    ),
    attack("SELECT setval('pg_catalog.x', 1)", Refused),
    attack("COPY scratch FROM PROGRAM 'id'", Refused),
    attack("COPY (SELECT 1) TO PROGRAM 'cat'", Refused),
    attack("COPY scratch TO '/tmp/weir-attack'", Refused),
    attack("COPY scratch FROM '/etc/passwd'", Refused),
    attack("LISTEN anything", Refused),
    attack("ALTER SYSTEM SET work_mem = '1MB'", Refused),
    attack("LOAD 'auto_explain'", Refused),
    attack("CREATE EXTENSION dblink", Refused),
    attack("CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p", Refused),
    attack("CREATE PUBLICATION p FOR ALL TABLES", Refused),
    attack("ALTER ROLE shop_app SET search_path = c", Refused),
    attack("CREATE ROLE other", Refused),
    attack("GRANT SELECT ON scratch TO PUBLIC", Refused),
    // Definitions.
    attack("DROP TABLE scratch", Refused),
    attack(
        "ALTER TABLE customers ALTER COLUMN name TYPE text USING email",
        Refused,
    ),
    attack("ALTER TABLE customers ADD CHECK (email NOT LIKE 'ann%')", Refused),
    attack("ALTER TABLE customers RENAME COLUMN email TO open", Refused),
    attack("ALTER TABLE customers RENAME TO plain", Refused),
    attack("CREATE UNIQUE INDEX ON customers (left(email, 1))", Refused),
    attack(
        "CREATE RULE r AS ON SELECT TO scratch DO INSTEAD SELECT * FROM payroll",
        Refused,
    ),
    attack(
        "CREATE RULE r AS ON INSERT TO scratch DO ALSO DELETE FROM customers",
        Refused,
    ),
    attack(
        "CREATE TRIGGER x AFTER INSERT ON scratch FOR EACH ROW EXECUTE FUNCTION tell()",
        Refused,
    ),
    attack(
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        Refused,
    ),
    attack("CREATE TABLE copy AS SELECT email FROM customers", Refused),
    attack("CREATE VIEW open AS SELECT email FROM customers", Refused),
    attack("CREATE STATISTICS s ON id, name FROM customers", Refused),
    attack("REFRESH MATERIALIZED VIEW customer_copy", Refused),
    attack("COMMENT ON TABLE customers IS 'x'", Refused),
    attack("REINDEX TABLE customers", Refused),
    attack("CLUSTER customers USING customers_pkey", Refused),
];

/// Writes that a guardrail or a missing rule forbids, in every disguise.
pub(crate) const WRITES: &[Attack] = &[
    attack("DELETE FROM scratch", Refused),
    attack("DELETE FROM scratch WHERE true", Refused),
    attack("DELETE FROM scratch WHERE 1 = 1", Refused),
    attack("DELETE FROM scratch WHERE 1 = 1 AND true", Refused),
    attack("DELETE FROM scratch WHERE id = 1 OR true", Refused),
    attack("DELETE FROM scratch WHERE NOT false", Refused),
    attack("DELETE FROM scratch WHERE 'a' LIKE 'a'", Refused),
    attack("DELETE FROM scratch WHERE EXISTS (SELECT 1)", Refused),
    attack("DELETE FROM scratch WHERE 1 IN (1, 2)", Refused),
    attack("DELETE FROM scratch WHERE id = id", Refused),
    attack("DELETE FROM scratch WHERE id IS NOT NULL OR id IS NULL", Harmless),
    attack("UPDATE scratch SET body = 'x'", Refused),
    attack("UPDATE scratch SET body = 'x' WHERE true", Refused),
    attack("UPDATE scratch SET body = 'x' WHERE 2 > 1", Refused),
    attack(
        "WITH d AS (DELETE FROM scratch RETURNING *) SELECT * FROM d",
        Refused,
    ),
    attack("WITH d AS (DELETE FROM scratch) SELECT 1", Refused),
    attack(
        "WITH d AS (UPDATE scratch SET body = 'x' RETURNING id) INSERT INTO lines SELECT 1, 'x' FROM d",
        Refused,
    ),
    attack("EXPLAIN ANALYZE DELETE FROM scratch", Refused),
    attack("EXPLAIN (ANALYZE true, VERBOSE) DELETE FROM scratch", Refused),
    attack(
        "EXPLAIN ANALYZE WITH d AS (DELETE FROM scratch) SELECT 1",
        Refused,
    ),
    attack("COPY (DELETE FROM scratch RETURNING id) TO STDOUT", Refused),
    attack(
        "COPY (WITH d AS (DELETE FROM scratch RETURNING id) SELECT * FROM d) TO STDOUT",
        Refused,
    ),
    attack("PREPARE p AS DELETE FROM scratch", Refused),
    attack("SELECT 1; DELETE FROM scratch", Refused),
    attack("SELECT 1;;; DELETE FROM scratch;", Refused),
    attack("BEGIN; DELETE FROM scratch; COMMIT", Refused),
    attack(
        "MERGE INTO scratch USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
        Refused,
    ),
    attack(
        "MERGE INTO scratch s USING scratch r ON s.id = s.id WHEN MATCHED THEN DELETE",
        Refused,
    ),
    attack("TRUNCATE scratch", Refused),
    attack("TRUNCATE ONLY scratch CASCADE", Refused),
    attack("/* harmless */ DELETE /* x */ FROM /* y */ scratch -- z", Refused),
    attack("DELETE FROM ONLY scratch", Refused),
    attack("DELETE FROM scratch AS s", Refused),
    attack(
        "UPDATE pg_settings SET setting = 'c' WHERE name = 'search_path'",
        Harmless,
    ),
    attack("SELECT id FROM (SELECT wipe() AS id) x", Refused),
    attack("INSERT INTO a.t VALUES (2, 'x')", Refused),
    attack("UPDATE a.t SET v = 'x' WHERE id = 1", Refused),
];

/// For a subject that may change definitions everywhere: what would uncover a protected column or row.
pub(crate) const DEFINITIONS: &[Attack] = &[
    attack("ALTER TABLE customers RENAME COLUMN email TO open", Refused),
    attack("ALTER TABLE customers RENAME TO plain", Refused),
    attack("ALTER TABLE customers SET SCHEMA a", Refused),
    attack(
        "ALTER TABLE customers ALTER COLUMN name TYPE text USING email",
        Refused,
    ),
    attack("ALTER TABLE customers ADD CHECK (email NOT LIKE 'ann%')", Refused),
    attack("ALTER TABLE customers DROP COLUMN email", Refused),
    attack("ALTER TABLE b.t INHERIT a.t", Refused),
    attack("CREATE UNIQUE INDEX ON customers (left(email, 1))", Refused),
    attack("CREATE INDEX ON orders (((note)::int))", Refused),
    attack("CREATE STATISTICS s ON name, email FROM customers", Harmless),
    attack("CREATE TABLE heir () INHERITS (customers)", Harmless),
    attack(
        "CREATE RULE r AS ON UPDATE TO customers DO ALSO INSERT INTO scratch VALUES (OLD.id, OLD.email)",
        Refused,
    ),
    attack(
        "CREATE RULE r AS ON INSERT TO scratch DO ALSO INSERT INTO lines SELECT 1, email FROM customers",
        Refused,
    ),
    attack(
        "CREATE TRIGGER t AFTER UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION tell()",
        Refused,
    ),
    attack("ALTER TABLE customers DISABLE TRIGGER ALL", Harmless),
    attack("CREATE VIEW open AS SELECT card FROM customers", Refused),
    attack("CREATE VIEW open AS SELECT * FROM payroll", Refused),
    attack(
        "CREATE OR REPLACE VIEW customer_view AS SELECT id, name AS contact, email AS ssn, salary FROM customers",
        Harmless,
    ),
    attack("CREATE TABLE open AS SELECT card FROM customers", Refused),
    attack(
        "CREATE MATERIALIZED VIEW open AS SELECT employee FROM payroll",
        Refused,
    ),
    attack(
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT employee FROM payroll'; SELECT f()",
        Refused,
    ),
    attack("CREATE CAST (text AS int) WITH INOUT AS IMPLICIT", Harmless),
    attack("ALTER TABLE orders ADD CHECK (amount < 100)", Refused),
    attack(
        "CREATE INDEX ON orders (id) WHERE 1 / (amount - 881177) = 0",
        Refused,
    ),
    attack("DROP TABLE orders", Refused),
    attack("TRUNCATE orders", Refused),
    attack("ALTER TABLE orders ALTER tenant SET DEFAULT 'a'", Harmless),
    attack("CREATE POLICY p ON orders USING (note LIKE 'x')", Harmless),
    attack("ALTER TABLE orders ENABLE ROW LEVEL SECURITY", Harmless),
];
