//! Every SQL form run on a real server, for ordinary and extreme values, in a session that tries to mislead it; and
//! tokens made of what the server really sends.

#![allow(clippy::panic, reason = "helpers of tests fail by it")]

use std::error::Error;

use bytes::BytesMut;
use row_masking::{ColumnType, DateUnit, Format, HashKey, Mask, MaskForm, TypeClass, form};
use test_support::{Database, shared_postgres};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

struct Case {
    /// As a column is declared.
    declared: &'static str,
    /// Base type as masks write it.
    sql: &'static str,
    class: TypeClass,
    collation: Option<&'static str>,
    constant: &'static str,
    /// SQL expressions; NULL is always added where the type takes it.
    values: &'static [&'static str],
}

const fn case(
    declared: &'static str,
    sql: &'static str,
    class: TypeClass,
    constant: &'static str,
    values: &'static [&'static str],
) -> Case {
    Case {
        declared,
        sql,
        class,
        collation: None,
        constant,
        values,
    }
}

const TEXTS: &[&str] = &[
    "''",
    "'a'",
    "'ann@example.com'",
    "'@'",
    "'@x'",
    "'a@'",
    "'\"a@b\"@c.org'",
    "'äöü€😀@münchen.de'",
    "'  '",
    "E'back\\\\slash''quote'",
    "'{}'",
    "'*'",
];
const SHORT_TEXTS: &[&str] = &[
    "''",
    "'a'",
    "'ann@x.com'",
    "'@'",
    "'äöü€😀@de'",
    "'  '",
    "'123456789'",
];

const CASES: &[Case] = &[
    case(
        "pg_catalog.text",
        "pg_catalog.text",
        TypeClass::Text,
        "it's {} \\ \"x\"",
        TEXTS,
    ),
    case(
        "pg_catalog.text",
        "pg_catalog.text",
        TypeClass::Text,
        "x",
        &["repeat('x@', 3000000)", "repeat('😀', 1000000)"],
    ),
    Case {
        declared: "pg_catalog.text COLLATE \"C\"",
        sql: "pg_catalog.text",
        class: TypeClass::Text,
        collation: Some("pg_catalog.\"C\""),
        constant: "***",
        values: TEXTS,
    },
    Case {
        declared: "pg_catalog.text COLLATE m.nondeterministic",
        sql: "pg_catalog.text",
        class: TypeClass::Text,
        collation: Some("m.nondeterministic"),
        constant: "***",
        values: TEXTS,
    },
    Case {
        declared: "pg_catalog.varchar(30) COLLATE \"POSIX\"",
        sql: "pg_catalog.\"varchar\"(30)",
        class: TypeClass::Varchar,
        collation: Some("pg_catalog.\"POSIX\""),
        constant: "***",
        values: TEXTS,
    },
    case(
        "pg_catalog.varchar",
        "pg_catalog.\"varchar\"",
        TypeClass::Varchar,
        "***",
        TEXTS,
    ),
    case(
        "pg_catalog.varchar(9)",
        "pg_catalog.\"varchar\"(9)",
        TypeClass::Varchar,
        "'{}'\\{}",
        SHORT_TEXTS,
    ),
    case(
        "pg_catalog.bpchar(9)",
        "pg_catalog.bpchar(9)",
        TypeClass::Bpchar,
        "***",
        SHORT_TEXTS,
    ),
    case(
        "pg_catalog.bpchar",
        "pg_catalog.bpchar",
        TypeClass::Bpchar,
        "***",
        SHORT_TEXTS,
    ),
    case("m.name_needed", "pg_catalog.text", TypeClass::Text, "***", TEXTS),
    case(
        "m.short_name",
        "pg_catalog.\"varchar\"(9)",
        TypeClass::Varchar,
        "***",
        SHORT_TEXTS,
    ),
    case(
        "pg_catalog.int2",
        "pg_catalog.int2",
        TypeClass::Integer,
        "-1",
        &["0", "-32768", "32767"],
    ),
    case(
        "pg_catalog.int4",
        "pg_catalog.int4",
        TypeClass::Integer,
        "0",
        &["-2147483648", "2147483647"],
    ),
    case(
        "pg_catalog.int8",
        "pg_catalog.int8",
        TypeClass::Integer,
        "9223372036854775807",
        &["-9223372036854775808", "1"],
    ),
    case(
        "m.positive",
        "pg_catalog.int4",
        TypeClass::Integer,
        "-5",
        &["1", "2147483647"],
    ),
    case(
        "pg_catalog.numeric",
        "pg_catalog.\"numeric\"",
        TypeClass::Number,
        "-1.5",
        &["'NaN'", "'Infinity'", "1e131071", "1e-16383"],
    ),
    case(
        "pg_catalog.numeric(10,2)",
        "pg_catalog.\"numeric\"(10,2)",
        TypeClass::Number,
        "12345678.91",
        &["99999999.99", "'NaN'"],
    ),
    case(
        "pg_catalog.numeric(2,4)",
        "pg_catalog.\"numeric\"(2,4)",
        TypeClass::Number,
        "0.0012",
        &["0.0099"],
    ),
    case(
        "pg_catalog.numeric(3,-2)",
        "pg_catalog.\"numeric\"(3,-2)",
        TypeClass::Number,
        "0",
        &["99900"],
    ),
    case(
        "pg_catalog.float4",
        "pg_catalog.float4",
        TypeClass::Number,
        "1.5",
        &["'NaN'", "'-Infinity'", "3.4e38"],
    ),
    case(
        "pg_catalog.float8",
        "pg_catalog.float8",
        TypeClass::Number,
        "-0.25",
        &["'NaN'", "1e308", "5e-324"],
    ),
    case(
        "pg_catalog.money",
        "pg_catalog.money",
        TypeClass::Number,
        "100",
        &["'-92233720368547758.08'"],
    ),
    case(
        "pg_catalog.bool",
        "pg_catalog.bool",
        TypeClass::Boolean,
        "false",
        &["true", "false"],
    ),
    case(
        "pg_catalog.date",
        "pg_catalog.date",
        TypeClass::Date,
        "1970-01-02",
        &[
            "'2024-02-29'",
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 BC'",
            "'4713-01-01 BC'",
            "'4714-12-31 BC'",
            "'0001-03-05 BC'",
            "'5874897-12-31'",
        ],
    ),
    case(
        "pg_catalog.timestamp",
        "pg_catalog.\"timestamp\"",
        TypeClass::Timestamp,
        "1970-01-02 03:04:05",
        &[
            "'2024-02-29 23:59:59.999999'",
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 00:00:00 BC'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    case(
        "pg_catalog.timestamp(3)",
        "pg_catalog.\"timestamp\"(3)",
        TypeClass::Timestamp,
        "1970-01-02 03:04:05.123",
        &["'2024-02-29 23:59:59.999'", "'4714-11-24 00:00:00 BC'"],
    ),
    case(
        "pg_catalog.timestamptz",
        "pg_catalog.timestamptz",
        TypeClass::TimestampTz,
        "1970-01-02 03:04:05+00",
        &[
            "'2024-02-29 23:59:59.999999+00'",
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 00:00:00+00 BC'",
            "'4713-01-01 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
        ],
    ),
    case(
        "pg_catalog.timestamptz(0)",
        "pg_catalog.timestamptz(0)",
        TypeClass::TimestampTz,
        "1970-01-02 03:04:05Z",
        &["'2024-02-29 23:59:59+00'"],
    ),
    case(
        "pg_catalog.time",
        "pg_catalog.\"time\"",
        TypeClass::Other,
        "00:00:00",
        &["'24:00:00'"],
    ),
    case(
        "interval(3)",
        "interval(3)",
        TypeClass::Other,
        "1 day",
        &["'178000000 years'"],
    ),
    case(
        "pg_catalog.uuid",
        "pg_catalog.uuid",
        TypeClass::Uuid,
        "00000000-0000-0000-0000-000000000000",
        &["'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    ),
    case(
        "pg_catalog.bytea",
        "pg_catalog.bytea",
        TypeClass::Bytea,
        "\\x00ff",
        &["'\\x'", "decode('005c27ff', 'hex')"],
    ),
    case(
        "pg_catalog.json",
        "pg_catalog.json",
        TypeClass::Json,
        "\"***\"",
        &["'{\"a\": 1}'", "'null'"],
    ),
    case(
        "pg_catalog.jsonb",
        "pg_catalog.jsonb",
        TypeClass::Json,
        "{}",
        &["'{\"a\": [1]}'", "'null'"],
    ),
    case(
        "pg_catalog.inet",
        "pg_catalog.inet",
        TypeClass::Inet,
        "0.0.0.0",
        &[
            "'10.1.2.3'",
            "'10.1.2.3/8'",
            "'0.0.0.0/0'",
            "'ffff:1::5'",
            "'::/0'",
        ],
    ),
    case(
        "pg_catalog.cidr",
        "pg_catalog.cidr",
        TypeClass::Inet,
        "0.0.0.0",
        &["'10.1.2.0/24'", "'0.0.0.0/0'", "'ffff:1::/32'"],
    ),
    case("m.mood", "m.mood", TypeClass::Enum, "o'k", &["'sad'"]),
    case(
        "pg_catalog.int4[]",
        "pg_catalog.int4[]",
        TypeClass::Array,
        "{}",
        &["'{1,2}'", "'{}'", "'{NULL}'"],
    ),
    case(
        "pg_catalog.text[]",
        "pg_catalog.text[]",
        TypeClass::Array,
        "{\"a{}b\"}",
        &["'{a}'"],
    ),
    case(
        "pg_catalog.int4range",
        "pg_catalog.int4range",
        TypeClass::Range,
        "empty",
        &["'[1,2)'", "'empty'"],
    ),
    case(
        "m.pair",
        "m.pair",
        TypeClass::Composite,
        "(0,)",
        &["ROW(1, 'x')", "ROW(NULL, NULL)", "ROW(1, NULL)"],
    ),
    case(
        "pg_catalog.point",
        "pg_catalog.point",
        TypeClass::Other,
        "(0,0)",
        &["'(1,NaN)'"],
    ),
    case(
        "pg_catalog.bit(5)",
        "pg_catalog.\"bit\"(5)",
        TypeClass::Other,
        "00000",
        &["'10101'"],
    ),
    case(
        "pg_catalog.tsvector",
        "pg_catalog.tsvector",
        TypeClass::Other,
        "",
        &["'a:1'"],
    ),
    case(
        "pg_catalog.xml",
        "pg_catalog.xml",
        TypeClass::Other,
        "<a/>",
        &["'<b/>'"],
    ),
    case(
        "pg_catalog.name",
        "pg_catalog.name",
        TypeClass::Other,
        "x",
        &["'y'"],
    ),
];

fn masks(constant: &str) -> Vec<Mask> {
    let partial = |keep_first, keep_last| Mask::Partial {
        keep_first,
        keep_last,
    };
    vec![
        Mask::Null,
        Mask::Constant {
            value: constant.to_owned(),
        },
        partial(0, 0),
        partial(0, 4),
        partial(2, 0),
        partial(1, 3),
        partial(999_999, 1),
        Mask::Email,
        Mask::DateTrunc { unit: DateUnit::Year },
        Mask::DateTrunc {
            unit: DateUnit::Month,
        },
        Mask::DateTrunc { unit: DateUnit::Day },
        Mask::Hash { key: key() },
    ]
}

fn database() -> Database<'static> {
    shared_postgres()
        .expect("a server")
        .database()
        .expect("a database")
}

async fn connect(database: &Database<'_>) -> Client {
    database.connect().await.expect("the server answers")
}

fn key() -> HashKey {
    HashKey::new(b"a key of the tests, long enough").expect("it is long enough")
}

const OBJECTS: &str = r#"
CREATE SCHEMA m;
CREATE COLLATION m.nondeterministic (provider = icu, locale = 'und', deterministic = false);
CREATE DOMAIN m.name_needed AS pg_catalog.text NOT NULL CHECK (VALUE <> '***');
CREATE DOMAIN m.short AS pg_catalog.varchar(9);
CREATE DOMAIN m.short_name AS m.short CHECK (length(VALUE) < 9999);
CREATE DOMAIN m.positive AS pg_catalog.int4 CHECK (VALUE > 0);
CREATE TYPE m.mood AS ENUM ('sad', 'o''k');
CREATE TYPE m.pair AS (a pg_catalog.int4, b pg_catalog.text);
"#;

/// What a hostile or odd session can change: types and operators of the same names in front, formats, quoting.
const MISLEAD: &str = r#"
CREATE SCHEMA evil;
CREATE FUNCTION evil.boom(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$ BEGIN RAISE 'boom'; END $$;
CREATE OPERATOR evil.|| (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = evil.boom);
CREATE FUNCTION evil.boom(pg_catalog.int4, pg_catalog.int4) RETURNS pg_catalog.int4 LANGUAGE plpgsql AS $$ BEGIN RAISE 'boom'; END $$;
CREATE OPERATOR evil.- (LEFTARG = pg_catalog.int4, RIGHTARG = pg_catalog.int4, FUNCTION = evil.boom);
CREATE FUNCTION evil.repeat(pg_catalog.text, pg_catalog.int4) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$ BEGIN RAISE 'boom'; END $$;
CREATE TEMP TABLE text(a pg_catalog.int4);
CREATE TEMP TABLE date(a pg_catalog.int4);
CREATE TEMP TABLE jsonb(a pg_catalog.int4);
CREATE TEMP TABLE uuid(a pg_catalog.int4);
CREATE TEMP TABLE inet(a pg_catalog.int4);
SET search_path = pg_temp, evil, pg_catalog;
SET standard_conforming_strings = off;
SET escape_string_warning = off;
SET "DateStyle" = 'SQL, DMY';
SET "TimeZone" = 'Pacific/Kiritimati';
SET bytea_output = 'escape';
SET "IntervalStyle" = 'sql_standard';
SET extra_float_digits = 0;
"#;

#[tokio::test]
async fn every_form_runs_on_a_server_and_keeps_the_columns_type() {
    let database = database();
    let honest = connect(&database).await;
    honest.batch_execute(OBJECTS).await.expect("objects");
    let misled = connect(&database).await;
    misled.batch_execute(MISLEAD).await.expect("objects that mislead");
    let mut run = 0;
    for case in CASES {
        load(&honest, case).await;
        let column_type = column_type(&honest, case).await;
        for mask in masks(case.constant) {
            if let Ok(MaskForm::Sql(sql)) = form(&mask, &column_type) {
                check_form(&misled, &sql.expression("w.\"the c\"\"{}\""), &mask, case).await;
                check_form(
                    &misled,
                    &sql.expression_in_place("w.\"the c\"\"{}\"", &column_type),
                    &mask,
                    case,
                )
                .await;
                run += 1;
            }
        }
    }
    assert_eq!(run, 182, "forms in the table");
}

async fn load(client: &Client, case: &Case) {
    let mut sql = format!(
        "DROP TABLE IF EXISTS m.t; CREATE TABLE m.t (id serial, \"the c\"\"{{}}\" {});",
        case.declared
    );
    for value in case.values {
        sql += &format!("INSERT INTO m.t (\"the c\"\"{{}}\") VALUES ({value});");
    }
    if case.declared != "m.name_needed" {
        sql += "INSERT INTO m.t (\"the c\"\"{}\") VALUES (NULL);";
    }
    client
        .batch_execute(&sql)
        .await
        .unwrap_or_else(|error| panic!("{}: {error:?}", case.declared));
}

async fn column_type(client: &Client, case: &Case) -> ColumnType {
    let sql = "WITH RECURSIVE base AS (
            SELECT atttypid AS declared, atttypid AS oid, atttypmod AS modifier FROM pg_attribute WHERE attrelid = 'm.t'::regclass AND attnum = 2
            UNION ALL SELECT declared, typbasetype, typtypmod FROM base JOIN pg_type ON pg_type.oid = base.oid WHERE typtype = 'd')
        SELECT declared, oid, modifier FROM base ORDER BY (SELECT typtype = 'd' FROM pg_type WHERE pg_type.oid = base.oid) LIMIT 1";
    let row = client.query_one(sql, &[]).await.expect("the column");
    ColumnType {
        oid: row.get(0),
        base_oid: row.get(1),
        modifier: row.get(2),
        sql: case.sql.to_owned(),
        class: case.class,
        collation: case.collation.map(str::to_owned),
    }
}

/// Runs one form over all values, and looks at what the server says about the result's type.
async fn check_form(client: &Client, expression: &str, mask: &Mask, case: &Case) {
    let place = format!("{mask:?} on {}: {expression}", case.declared);
    // As govern uses it: in a derived table, with the row available; then stored, so that the server states the type.
    let sql = format!(
        "DROP TABLE IF EXISTS m.result; CREATE TABLE m.result AS SELECT t.id, t.raw, t.masked FROM \
         (SELECT w.id, w.\"the c\"\"{{}}\" AS raw, {expression} AS masked FROM m.t AS w) AS t"
    );
    client
        .batch_execute(&sql)
        .await
        .unwrap_or_else(|error| panic!("{place}: {error:?}"));
    // The very type, modifier and collation of the column; a domain's are those of its base.
    let sql = "WITH RECURSIVE base AS (
            SELECT a.atttypid AS oid, a.atttypmod AS modifier, a.attcollation AS coll FROM pg_attribute a WHERE attrelid = 'm.result'::regclass AND attname = 'raw'
            UNION ALL SELECT typbasetype, typtypmod, coll FROM base JOIN pg_type ON pg_type.oid = base.oid WHERE typtype = 'd')
        SELECT format_type(m.atttypid, m.atttypmod), format_type(base.oid, base.modifier), m.attcollation = base.coll
        FROM base, pg_attribute m WHERE m.attrelid = 'm.result'::regclass AND m.attname = 'masked' AND NOT EXISTS (SELECT FROM pg_type WHERE pg_type.oid = base.oid AND typtype = 'd')";
    let row = client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{place}: {error:?}"));
    assert_eq!(row.get::<_, String>(0), row.get::<_, String>(1), "{place}");
    assert!(row.get::<_, bool>(2), "collation of {place}");
    // NULL stays NULL, and nothing else becomes it but for the masks that say so.
    let sql = "SELECT count(*) FILTER (WHERE raw IS NOT DISTINCT FROM NULL AND masked IS DISTINCT FROM NULL),
                      count(*) FILTER (WHERE raw IS DISTINCT FROM NULL AND masked IS NOT DISTINCT FROM NULL),
                      count(*) FILTER (WHERE masked IS DISTINCT FROM NULL) FROM m.result";
    let row = client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{place}: {error:?}"));
    let (made, lost, shown): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(made, 0, "{place}");
    match mask {
        Mask::Null => assert_eq!(shown, 0, "{place}"),
        Mask::Constant { .. } | Mask::Partial { .. } | Mask::Email => assert_eq!(lost, 0, "{place}"),
        Mask::DateTrunc { .. } | Mask::Hash { .. } => {}
    }
    // A constant is one value; WITH RECURSIVE demands the exact type and modifier of both arms.
    if matches!(mask, Mask::Constant { .. }) {
        let sql =
            "SELECT count(DISTINCT masked::pg_catalog.text) FROM m.result WHERE masked IS DISTINCT FROM NULL";
        let different: i64 = client
            .query_one(sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{place}: {error:?}"))
            .get(0);
        assert_eq!(different, 1, "{place}");
    }
}

#[tokio::test]
async fn forms_show_what_they_say() {
    let database = database();
    let client = connect(&database).await;
    let partial = |keep_first, keep_last| Mask::Partial {
        keep_first,
        keep_last,
    };
    let trunc = |unit| Mask::DateTrunc { unit };
    let (text, varchar) = ("pg_catalog.text", "pg_catalog.\"varchar\"(12)");
    let timestamptz = "pg_catalog.timestamptz";
    let cases: Vec<(&str, TypeClass, Mask, &str, Option<&str>)> = vec![
        (
            text,
            TypeClass::Text,
            partial(0, 4),
            "4111111111111234",
            Some("************1234"),
        ),
        (text, TypeClass::Text, partial(2, 2), "abcdef", Some("ab**ef")),
        (text, TypeClass::Text, partial(2, 2), "abcd", Some("****")),
        (text, TypeClass::Text, partial(0, 4), "äöü€😀", Some("*öü€😀")),
        (text, TypeClass::Text, partial(0, 0), "secret", Some("******")),
        (text, TypeClass::Text, partial(0, 4), "", Some("")),
        (
            "pg_catalog.bpchar(6)",
            TypeClass::Bpchar,
            partial(1, 0),
            "abc",
            Some("a**   "),
        ),
        (
            text,
            TypeClass::Text,
            Mask::Email,
            "ann@example.com",
            Some("a***@example.com"),
        ),
        (
            text,
            TypeClass::Text,
            Mask::Email,
            "\"s@ecret\"@example.com",
            Some("\"***@example.com"),
        ),
        (text, TypeClass::Text, Mask::Email, "@secret", Some("***")),
        (text, TypeClass::Text, Mask::Email, "no address", Some("***")),
        (text, TypeClass::Text, Mask::Email, "a@", Some("a***@")),
        (
            varchar,
            TypeClass::Varchar,
            Mask::Email,
            "ann@abcd.com",
            Some("a***@abcd.co"),
        ),
        (
            text,
            TypeClass::Text,
            Mask::Constant {
                value: "it's \\ {}".into(),
            },
            "x",
            Some("it's \\ {}"),
        ),
        (
            "pg_catalog.inet",
            TypeClass::Inet,
            partial(0, 4),
            "10.1.2.3",
            Some("10.1.0.0/16"),
        ),
        (
            "pg_catalog.date",
            TypeClass::Date,
            trunc(DateUnit::Month),
            "2024-02-29",
            Some("2024-02-01"),
        ),
        (
            "pg_catalog.date",
            TypeClass::Date,
            trunc(DateUnit::Year),
            "2024-12-31",
            Some("2024-01-01"),
        ),
        (
            "pg_catalog.date",
            TypeClass::Date,
            trunc(DateUnit::Year),
            "0002-12-31 BC",
            Some("0002-01-01 BC"),
        ),
        (
            "pg_catalog.date",
            TypeClass::Date,
            trunc(DateUnit::Year),
            "infinity",
            None,
        ),
        (
            "pg_catalog.date",
            TypeClass::Date,
            trunc(DateUnit::Month),
            "4714-11-24 BC",
            None,
        ),
        (
            "pg_catalog.\"timestamp\"",
            TypeClass::Timestamp,
            trunc(DateUnit::Day),
            "2024-02-29 12:13:14",
            Some("2024-02-29 00:00:00"),
        ),
        (
            "pg_catalog.\"timestamp\"",
            TypeClass::Timestamp,
            trunc(DateUnit::Month),
            "infinity",
            Some("infinity"),
        ),
        (
            timestamptz,
            TypeClass::TimestampTz,
            trunc(DateUnit::Day),
            "2024-03-01 12:00:00+14",
            Some("2024-02-29 00:00:00+00"),
        ),
    ];
    client
        .batch_execute("SET \"TimeZone\" = 'UTC'")
        .await
        .expect("a setting");
    for (sql, class, mask, value, wanted) in cases {
        let column_type = ColumnType {
            oid: 0,
            base_oid: 0,
            modifier: -1,
            sql: sql.into(),
            class,
            collation: None,
        };
        let Ok(MaskForm::Sql(made)) = form(&mask, &column_type) else {
            panic!("{mask:?} on {sql}")
        };
        let shown = made.expression("w.c");
        let query =
            format!("SELECT {shown}::pg_catalog.text FROM (SELECT $1::pg_catalog.text::{sql} AS c) AS w");
        let row = client
            .query_one(
                &query.replace(
                    &format!("{shown}::pg_catalog.text"),
                    &format!("pg_catalog.format('%s', {shown}), {shown} IS NULL"),
                ),
                &[&value],
            )
            .await;
        let row = row.unwrap_or_else(|error| panic!("{mask:?} on {sql}: {error:?}"));
        let got = (!row.get::<_, bool>(1)).then(|| row.get::<_, String>(0));
        assert_eq!(got.as_deref(), wanted, "{mask:?} on {sql} of {value}");
    }
}

/// Bytes as they came.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }
    fn accepts(_: &Type) -> bool {
        true
    }
}

#[tokio::test]
async fn a_token_is_one_value_in_text_and_in_binary() {
    let database = database();
    let client = connect(&database).await;
    let cases = [
        ("pg_catalog.text", TypeClass::Text, -1, "'ann@example.com'"),
        ("pg_catalog.text", TypeClass::Text, -1, "''"),
        ("pg_catalog.\"varchar\"(20)", TypeClass::Varchar, 24, "'äöü€'"),
        ("pg_catalog.bpchar(70)", TypeClass::Bpchar, 74, "'abc'"),
        (
            "pg_catalog.uuid",
            TypeClass::Uuid,
            -1,
            "'0F000000-0000-4000-8000-0000000000ff'",
        ),
        (
            "pg_catalog.bytea",
            TypeClass::Bytea,
            -1,
            "decode('005c27ff0a41', 'hex')",
        ),
        ("pg_catalog.bytea", TypeClass::Bytea, -1, "''"),
        ("pg_catalog.bytea", TypeClass::Bytea, -1, "decode('5c78', 'hex')"),
    ];
    for (sql, class, modifier, value) in cases {
        let column_type = ColumnType {
            oid: 0,
            base_oid: 0,
            modifier,
            sql: sql.into(),
            class,
            collation: None,
        };
        let Ok(MaskForm::Wire(mask)) = form(&Mask::Hash { key: key() }, &column_type) else {
            panic!("{sql}")
        };
        for output in ["hex", "escape"] {
            client
                .batch_execute(&format!("SET bytea_output = '{output}'"))
                .await
                .expect("a setting");
            let query = format!("SELECT {value}::{sql}");
            let binary: Raw = client.query_one(&query, &[]).await.expect("a row").get(0);
            let messages = client.simple_query(&query).await.expect("a row");
            let text = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            let token = |value: &[u8], format| {
                let mut out = BytesMut::new();
                mask.write_token(value, format, &mut out)
                    .expect("the server writes values of the type");
                out
            };
            let from_binary = token(&binary.0, Format::Binary);
            let from_text = token(text.expect("a value").as_bytes(), Format::Text);
            // The server is the judge: the token in text, read as the type, is the token in binary, and it fits.
            let literal = String::from_utf8(from_text.to_vec())
                .expect("text")
                .replace('\'', "''");
            let read: Raw = client
                .query_one(&format!("SELECT '{literal}'::{sql}"), &[])
                .await
                .expect("a value")
                .get(0);
            assert_eq!(read.0, from_binary, "{sql} {value} {output}");
            assert_ne!(from_text, text.expect("a value").as_bytes());
        }
    }
}

#[test]
fn pairs_without_a_form_are_refused_with_the_reason() {
    let column = |class, modifier| ColumnType {
        oid: 0,
        base_oid: 0,
        modifier,
        sql: "the.type".into(),
        class,
        collation: None,
    };
    let refused = [
        (Mask::Email, column(TypeClass::Integer, -1)),
        (
            Mask::Partial {
                keep_first: 0,
                keep_last: 4,
            },
            column(TypeClass::Integer, -1),
        ),
        (
            Mask::Partial {
                keep_first: 0,
                keep_last: 4,
            },
            column(TypeClass::Json, -1),
        ),
        (
            Mask::Partial {
                keep_first: u32::MAX,
                keep_last: 4,
            },
            column(TypeClass::Text, -1),
        ),
        (
            Mask::DateTrunc { unit: DateUnit::Year },
            column(TypeClass::Text, -1),
        ),
        (
            Mask::DateTrunc { unit: DateUnit::Day },
            column(TypeClass::Date, -1),
        ),
        (Mask::Hash { key: key() }, column(TypeClass::Integer, -1)),
        (Mask::Hash { key: key() }, column(TypeClass::Varchar, 19)),
        (Mask::Hash { key: key() }, column(TypeClass::Bpchar, 5)),
        (
            Mask::Constant { value: "a\0b".into() },
            column(TypeClass::Text, -1),
        ),
        (
            Mask::Constant { value: "abc".into() },
            column(TypeClass::Varchar, 6),
        ),
    ];
    for (mask, column) in refused {
        let error = form(&mask, &column).expect_err("no such form");
        assert!(error.to_string().contains(mask.name()), "{error}");
    }
    assert!(matches!(
        form(&Mask::Hash { key: key() }, &column(TypeClass::Varchar, 20)),
        Ok(MaskForm::Wire(_))
    ));
}
