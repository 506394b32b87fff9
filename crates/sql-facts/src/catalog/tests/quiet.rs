//! What is called quiet is called on a real server with extreme values, and must neither raise nor speak.

use std::sync::{Arc, Mutex};

use tokio_postgres::{AsyncMessage, NoTls};

use super::*;
use crate::facts::FunctionOrigin;

/// A session that keeps what the server says by itself.
struct Listening {
    client: tokio_postgres::Client,
    said: Arc<Mutex<Vec<String>>>,
}

impl Listening {
    async fn new(db: &Database<'_>) -> Self {
        let (client, mut connection) = db.config().connect(NoTls).await.expect("a session");
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        tokio::spawn(async move {
            while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) => {
                        heard.lock().expect("no panic").push(notice.to_string())
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        });
        Self { client, said }
    }
    /// What went wrong with that statement.
    async fn complaint(&self, sql: &str) -> Option<String> {
        let failed = self.client.batch_execute(sql).await.err();
        let said = std::mem::take(&mut *self.said.lock().expect("no panic"));
        match (failed, said.first()) {
            (Some(error), _) => Some(format!(
                "{sql}: {}",
                error.as_db_error().map_or(error.to_string(), ToString::to_string)
            )),
            (None, Some(notice)) => Some(format!("{sql}: {notice}")),
            (None, None) => None,
        }
    }
}

const SETTINGS: [&str; 4] = [
    "SET TimeZone = 'UTC'",
    "SET TimeZone = 'Pacific/Kiritimati'; SET bytea_output = 'escape'; SET IntervalStyle = 'iso_8601'",
    "SET TimeZone = 'America/Los_Angeles'; SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'",
    "SET TimeZone = 'FAR-24'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'postgres_verbose'",
];

/// Extreme values of a type, as SQL; several lists for a polymorphic one.
fn extremes(oid: Oid) -> Vec<Vec<String>> {
    let cast = |values: &[&str], name: &str| -> Vec<String> {
        values
            .iter()
            .map(|value| format!("'{}'::{name}", value.replace('\'', "''")))
            .collect()
    };
    let long = |name: &str| format!("repeat('ab%_\\é ', 3000)::{name}");
    let texts = |name: &str| {
        let values = [
            "", " ", "a", "A", "\\", "a\\", "%", "_", "'", "é", "ß", "𝔸x", "İ", "0", "null", "{", "x\ty",
        ];
        let mut all = cast(&values, name);
        all.push(long(name));
        all
    };
    let one = |values: &[&str], name: &str| vec![cast(values, name)];
    match oid {
        16 => one(&["t", "f"], "bool"),
        17 => vec![{
            let mut all = cast(&["", "\\x00", "\\xff", "\\x5c5c"], "bytea");
            all.push("decode(repeat('ff', 20000), 'hex')".to_owned());
            all
        }],
        18 => one(&["", "a", "\\377"], "\"char\""),
        19 => one(
            &[
                "",
                "a",
                "é",
                "0123456789012345678901234567890123456789012345678901234567890123456789",
            ],
            "name",
        ),
        20 => one(
            &[
                "0",
                "1",
                "-1",
                "9223372036854775807",
                "-9223372036854775808",
                "4294967296",
            ],
            "int8",
        ),
        21 => one(&["0", "1", "-1", "32767", "-32768"], "int2"),
        23 => one(&["0", "1", "-1", "2147483647", "-2147483648", "1114112"], "int4"),
        25 => vec![texts("text"), texts("text COLLATE \"C\"")],
        26 => one(&["0", "1", "4294967295"], "oid"),
        27 => one(&["(0,1)", "(4294967295,65535)"], "tid"),
        28 => one(&["0", "3", "4294967295"], "xid"),
        29 => one(&["0", "4294967295"], "cid"),
        114 => one(&["null", "{}", "[1,\"\\u0000\"]", "\"\\ud800\""], "json"),
        700 => one(
            &["0", "-0", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1e-45"],
            "float4",
        ),
        701 => one(
            &[
                "0",
                "-0",
                "NaN",
                "Infinity",
                "-Infinity",
                "1.7976931348623157e308",
                "5e-324",
            ],
            "float8",
        ),
        774 => one(
            &[
                "00:00:00:00:00:00:00:00",
                "ff:ff:ff:ff:ff:ff:ff:ff",
                "08:00:2b:ff:fe:01:02:03",
            ],
            "macaddr8",
        ),
        790 => one(&["0", "92233720368547758.07", "-92233720368547758.08"], "money"),
        829 => one(&["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"], "macaddr"),
        650 => one(&["0.0.0.0/0", "255.255.255.255/32", "::/0"], "cidr"),
        869 => one(
            &[
                "0.0.0.0/0",
                "255.255.255.255",
                "::1/0",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ],
            "inet",
        ),
        1042 => vec![texts("bpchar"), cast(&["", "a  "], "char(3)")],
        1043 => vec![texts("varchar")],
        1082 => one(
            &[
                "infinity",
                "-infinity",
                "5874897-12-31",
                "4714-11-24 BC",
                "2000-02-29",
                "294277-01-01",
            ],
            "date",
        ),
        1083 => one(&["00:00", "24:00:00", "23:59:59.999999"], "time"),
        1114 => one(
            &[
                "infinity",
                "-infinity",
                "294276-12-31 23:59:59.999999",
                "4714-11-24 00:00:00 BC",
                "2000-02-29 12:00",
            ],
            "timestamp",
        ),
        // The ends of the calendar, written in UTC, because the session's zone moves them.
        1184 => one(
            &[
                "infinity",
                "-infinity",
                "294276-12-31 23:59:59.999999+00",
                "4714-11-24 00:00:00+00 BC",
                "2021-11-07 01:30-07",
            ],
            "timestamptz",
        ),
        1186 => one(
            &[
                "0",
                "178000000 years",
                "-178000000 years",
                "2147483647 days",
                "-2147483648 days",
                "2147483647 hours",
                "1 mon -30 days 00:00:00.000001",
            ],
            "interval",
        ),
        1266 => one(&["00:00+15:59:59", "24:00:00-15:59:59", "12:00+00"], "timetz"),
        1560 => one(
            &["0", "1", "10101010101010101010101010101010101"],
            "varbit::bit(40)",
        ),
        1562 => one(&["", "1", "10101010101010101010101010101010101"], "varbit"),
        1700 => vec![{
            let mut all = cast(&["0", "NaN", "-1", "1e-1000", "9.99"], "numeric");
            all.push("('1e131071'::numeric)".to_owned());
            all.push("('-1e131071'::numeric)".to_owned());
            all.push("repeat('9', 5000)::numeric".to_owned());
            // Infinity came with 14.
            all
        }],
        2950 => one(
            &[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
            "uuid",
        ),
        3220 => one(&["0/0", "FFFFFFFF/FFFFFFFF"], "pg_lsn"),
        3802 => vec![{
            let values = [
                "null",
                "{}",
                "[]",
                "[null]",
                "{\"a\":{\"b\":[1,2]}}",
                "\"a\"",
                "1e1000",
                "true",
                "[1,[2]]",
                "\"\"",
            ];
            cast(&values, "jsonb")
        }],
        5069 => one(&["0", "18446744073709551615"], "xid8"),
        1009 => one(&["{}", "{NULL}", "{a,b}"], "text[]"),
        // anyarray, anyenum, anyrange, anymultirange, anynonarray, anyelement.
        2277 => vec![
            cast(
                &["{}", "{1}", "{NULL,2}", "{{1,2},{3,4}}", "[5:6]={1,2}"],
                "int4[]",
            ),
            cast(&["{}", "{a}", "{NULL,\"\"}"], "text[]"),
            cast(&["{NaN}", "{1e131071}"], "numeric[]"),
            cast(&["{low}", "{high,low}"], "level[]"),
        ],
        3500 => one(&["low", "high"], "level"),
        3831 => vec![
            cast(
                &["empty", "(,)", "[1,2)", "[-2147483648,2147483647)"],
                "int4range",
            ),
            cast(&["empty", "[NaN,NaN]", "(,1e131071]"], "numrange"),
            cast(&["empty", "[infinity,infinity]", "(,)"], "tstzrange"),
        ],
        4537 => vec![cast(&["{}", "{(,)}", "{[1,2),[5,6)}"], "int4multirange")],
        2283 | 2776 => one(&["0", "1"], "int4"),
        _ => Vec::new(),
    }
}

/// `count(expression)` over all combinations of values of these types; `None` where a type has no values here.
fn calls(types: &[Oid], expression: impl Fn(&[String]) -> String) -> Option<Vec<String>> {
    let lists: Vec<Vec<Vec<String>>> = types.iter().map(|oid| extremes(*oid)).collect();
    if lists.iter().any(Vec::is_empty) {
        return None;
    }
    let polymorphic = lists.iter().map(Vec::len).max().unwrap_or(1);
    let mut statements = Vec::new();
    for variant in 0..polymorphic {
        let mut from = Vec::new();
        for (place, variants) in lists.iter().enumerate() {
            let values = variants.get(variant.min(variants.len() - 1))?;
            let rows: Vec<String> = values.iter().map(|value| format!("({value})")).collect();
            from.push(format!("(VALUES {}) AS v{place}(a{place})", rows.join(", ")));
        }
        let arguments: Vec<String> = (0..types.len()).map(|place| format!("a{place}")).collect();
        statements.push(format!(
            "SELECT count({}) FROM {}",
            expression(&arguments),
            from.join(", ")
        ));
    }
    Some(statements)
}

fn run(statements: impl Fn(u16) -> Vec<String>) -> (Vec<String>, usize) {
    let db = database();
    db.psql("create type level as enum ('low', 'high')")
        .expect("an enum");
    let statements = statements(major(&db));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let complaints = runtime.block_on(async {
        let session = Listening::new(&db).await;
        let mut complaints = Vec::new();
        for settings in SETTINGS {
            assert_eq!(session.complaint(settings).await, None);
            for statement in &statements {
                complaints.extend(session.complaint(statement).await);
            }
        }
        complaints
    });
    (complaints, statements.len())
}

#[test]
fn quiet_functions_never_raise_or_speak() {
    let (complaints, tried) = run(|major| {
        let quiet = builtins::of_major(major).expect("reviewed").quiet_functions();
        assert!(quiet.len() > 400, "{} quiet functions", quiet.len());
        quiet
            .into_iter()
            .flat_map(|(name, types)| {
                calls(&types, |a| {
                    format!("pg_catalog.{}({})", quote_identifier(name), a.join(", "))
                })
                .unwrap_or_else(|| panic!("no values for {name}({types:?})"))
            })
            .collect()
    });
    assert!(tried > 400);
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn quiet_casts_never_raise_or_speak() {
    let (complaints, tried) = run(|major| {
        let builtins = builtins::of_major(major).expect("reviewed");
        let catalog = Catalog::builtins(major).expect("reviewed");
        let types = types::TypeLayers {
            upper: None,
            lower: &catalog.types,
        };
        let name = |oid: Oid| types.column_type(oid, -1, None, None).expect("a type").sql;
        let mut statements = Vec::new();
        for (source, target) in builtins.quiet_casts() {
            // Binary casts between the server's own bookkeeping types have no values here, and compute nothing.
            statements.extend(
                calls(&[source], |a| format!("{}::{}", a.join(""), name(target))).unwrap_or_default(),
            );
        }
        for source in catalog.types.iter().filter(|entry| entry.oid < 10000) {
            for target in ["text", "varchar(2)", "bpchar(2)", "varchar"] {
                if builtins.quiet_cast(types, Operand::Typed(source.oid), 25, -1) && source.oid != 25 {
                    statements.extend(
                        calls(&[source.oid], |a| format!("{}::{target}", a.join(""))).unwrap_or_default(),
                    );
                }
            }
        }
        statements
    });
    assert!(tried > 100, "{tried}");
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn quiet_literals_never_raise_or_speak() {
    let (complaints, tried) = run(|major| {
        let mut statements = Vec::new();
        let fields = "century day decade dow doy epoch hour isodow isoyear julian microseconds millennium milliseconds \
                      minute month quarter second timezone timezone_hour week year";
        for field in fields.split_ascii_whitespace() {
            for oid in [1082, 1083, 1114, 1184, 1186, 1266] {
                for (name, call) in [
                    ("extract", format!("extract({field} from a0)")),
                    ("date_part", format!("date_part('{field}', a0)")),
                    ("date_trunc", format!("date_trunc('{field}', a0)")),
                ] {
                    if builtins::quiet_with_literal(major, name, field, oid) {
                        statements.extend(calls(&[oid], |_| call.clone()).expect("values"));
                    }
                }
            }
        }
        for pattern in ["a", "^a.b$", "%", "$^", "  ", ".", "^^", "$$", "a b 9"] {
            assert!(builtins::is_quiet_pattern(pattern));
            for operator in ["~", "~*", "!~", "!~*"] {
                statements.extend(calls(&[25], |_| format!("a0 {operator} '{pattern}'")).expect("values"));
            }
        }
        statements
    });
    assert!(tried > 60, "{tried}");
    assert_eq!(complaints, Vec::<String>::new());
    assert!(!builtins::is_quiet_pattern("("));
    assert!(!builtins::quiet_with_literal(15, "extract", "hour", 1082));
}

#[test]
fn quiet_is_told_by_types() {
    let db = database();
    db.psql(
        "create type mood as enum ('a'); create domain short as varchar(5); create type pair as (a int);
         create domain picky as int check (value > 0)",
    )
    .expect("types");
    let catalog = catalog(&db);
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let of = |name: &str| Operand::Typed(view.resolve_type(None, name, &[]).expect("a type").oid);
    let operator = |left: Operand, name: &str, right: Operand| {
        let facts = view.operator_with(None, name, Some(left), right);
        assert_eq!(facts.origin, FunctionOrigin::BuiltIn, "{name}");
        facts.quiet
    };
    use Operand::{Unsure, Untyped};
    assert!(operator(of("text"), "=", Untyped));
    assert!(operator(Untyped, "=", of("varchar")));
    assert!(operator(of("short"), "=", Untyped));
    assert!(operator(of("short"), "=", of("text")));
    assert!(operator(of("int4"), "<", of("int8")));
    assert!(operator(of("numeric"), "<", of("int4")));
    assert!(operator(of("mood"), "=", Untyped));
    assert!(operator(of("int4[]"), "=", of("int4[]")));
    assert!(operator(of("int4range"), "<", Untyped));
    assert!(operator(of("date"), "<", of("timestamptz")));
    assert!(operator(of("jsonb"), "->>", Untyped));
    assert!(operator(of("text"), "||", of("text")));
    // Overflow tells the value.
    assert!(!operator(of("int4"), "+", of("int4")));
    assert!(!operator(of("int4"), "=", Unsure));
    assert!(!operator(Unsure, "=", Unsure));
    assert!(!operator(of("pair"), "=", of("pair")));
    assert!(!operator(of("box"), "=", of("box")));
    assert!(!operator(of("text"), "~~", Untyped));
    assert!(!operator(of("json"), "->>", Untyped));
    assert!(!operator(of("xml[]"), "=", Untyped));

    // Found, though only through a cast: of the elements, or of a value whose type is not certain.
    let class = |name: &str, arguments: &[Operand]| view.function_with(None, name, arguments).class;
    let open = crate::facts::FunctionClass::Open;
    assert_eq!(class("jsonb_extract_path", &[of("jsonb"), of("varchar[]")]), open);
    assert_eq!(class("jsonb_delete_path", &[of("jsonb"), of("varchar[]")]), open);
    assert_eq!(class("lower", &[Operand::Typed(705)]), open);
    assert_eq!(class("row_to_json", &[of("pair")]), open);
    assert_eq!(class("array_to_string", &[of("mood[]"), Untyped]), open);
    assert_eq!(class("pg_get_viewdef", &[of("regclass"), of("bool")]), open);

    assert!(view.function_with(None, "lower", &[of("varchar")]).quiet);
    assert!(view.function(None, "lower", 1).quiet);
    assert!(!view.function(None, "length", 1).quiet);
    assert!(view.function_with(None, "length", &[of("text")]).quiet);
    assert!(
        !view
            .function_with(None, "substr", &[of("text"), of("int4"), of("int4")])
            .quiet
    );

    let cast = |from: &str, to: &str, modifier| {
        let Operand::Typed(target) = of(to) else {
            unreachable!()
        };
        view.cast_between(of(from), target, modifier).quiet
    };
    assert!(cast("int4", "text", -1));
    assert!(cast("int4", "numeric", -1));
    assert!(!cast("int4", "numeric", 327_684));
    assert!(cast("text", "varchar", 6));
    assert!(!cast("numeric", "int4", -1));
    assert!(!cast("int8", "int4", -1));
    assert!(!cast("text", "int4", -1));
    assert!(!cast("text", "mood", -1));
    assert!(cast("mood", "text", -1));
    assert!(!cast("int4", "picky", -1));
    assert!(view.quiet_with_literal("extract", "year", of("date")));
    assert!(!view.quiet_with_literal("extract", "year", Unsure));
    assert!(view.quiet_with_literal("~", "^a", of("text")));
}
