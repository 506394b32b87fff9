//! What psql asks by itself where something is protected.

use std::process::Command;

use test_support::postgres_bin;

use super::world::World;

const COMMANDS: [&str; 38] = [
    "\\d",
    "\\d p",
    "\\d+ p",
    "\\d ch",
    "\\d+ v",
    "\\d+ mv",
    "\\d p_id_seq",
    "\\dt+",
    "\\dv",
    "\\di+",
    "\\ds",
    "\\df",
    "\\df+ f",
    "\\l",
    "\\du+",
    "\\dn+",
    "\\dx",
    "\\dT+",
    "\\dD",
    "\\dp",
    "\\db",
    "\\dc",
    "\\dC",
    "\\dd",
    "\\ddp",
    "\\dE",
    "\\des",
    "\\dF",
    "\\dL",
    "\\do",
    "\\dO",
    "\\dP",
    "\\drds",
    "\\dRp",
    "\\dy",
    "\\sf f",
    "\\sv v",
    "\\da",
];

#[test]
fn psql_describes_what_there_is() {
    let setup = "create table p(id serial primary key, email text, d date, tags text[] default '{}',
          g text generated always as (lower(email)) stored, check (id > 0));
        create table ch(x int references p); create view v as select id, email from p;
        create materialized view mv as select id from p; create index on p(d);
        create function f(int) returns int language sql as 'select 1';
        create type mood as enum ('a'); create domain dd as text check (value <> '');";
    let world = World::new(
        setup,
        &["masks: [{name: m, columns: [public.p.email], mask: {type: 'Null'}}]"],
    );
    let (mut asked, mut refused) = (0, Vec::new());
    for command in COMMANDS {
        let mut psql = Command::new(postgres_bin().unwrap().join("psql"));
        let answer = psql
            .args(["-X", "-E", "-c", command])
            .arg(world.db.url())
            .output()
            .unwrap();
        assert!(
            answer.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&answer.stderr)
        );
        let printed = String::from_utf8(answer.stdout).unwrap();
        for part in printed.split("********* QUERY **********\n").skip(1) {
            let sql = part.split("\n**************************").next().unwrap();
            asked += 1;
            if let Err(refusal) = world.decide(sql) {
                refused.push(format!("{command}: {refusal}\n{sql}"));
            }
        }
    }
    assert!(asked >= COMMANDS.len(), "psql asked only {asked} times");
    assert!(
        refused.is_empty(),
        "{} of {asked} refused\n{}",
        refused.len(),
        refused.join("\n\n")
    );
}
