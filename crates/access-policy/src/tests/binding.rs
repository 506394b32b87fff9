//! `bind` on real catalogs: what names mean, and what happens when they move.

use super::world::World;

const EMAIL: &str = "defaultAction: Allow
masks: [{name: m, columns: [public.customers.email], mask: {type: Email}}]";

fn setup() -> &'static str {
    "create table customers (id int primary key, tenant text, email text, \"E Mail\" text);
     insert into customers values (1, 'a', 'ann@example.com', 'x'), (2, 'b', 'bob@example.com', 'y');
     create table other (id int, note text);"
}

#[test]
fn a_column_that_never_was_closes_its_table_and_a_table_its_name() {
    let spec = "defaultAction: Allow
masks:
- {name: gone, columns: [public.customers.emial], mask: {type: Email}}
- {name: nowhere, columns: [public.clients.email], mask: {type: Email}}";
    let mut world = World::own(setup(), &[spec]);
    let told: Vec<(&str, bool)> = world
        .unresolved
        .iter()
        .map(|one| (one.name.as_str(), one.was_bound))
        .collect();
    assert_eq!(
        told,
        [("public.customers.emial", false), ("public.clients.email", false)]
    );
    assert_eq!(world.unresolved[0].field, "spec.masks[0].columns[0]");
    assert_eq!(world.code("select id from customers"), 12);
    assert_eq!(world.code("update customers set id = 1 where id = 2"), 12);
    assert_eq!(world.code("drop table customers"), 12);
    assert_eq!(world.code("select * from clients"), 5);
    assert_eq!(world.code("create table clients (id int)"), 12);
    assert_eq!(world.code("select * from other"), 0);
    // A table of that name, made later without the column, stays closed; with it, it is bound.
    world.db.psql("create table clients (id int)").unwrap();
    world.rebind(&[spec]);
    assert_eq!(world.code("select * from clients"), 12);
    world
        .db
        .psql("alter table clients add column email text")
        .unwrap();
    world.rebind(&[spec]);
    assert_eq!(world.code("select id from clients"), 0);
    // The mended policy opens the other.
    world.rebind(&[EMAIL]);
    assert_eq!(world.unresolved, []);
    assert_eq!(world.code("select id from customers"), 0);
}

#[test]
fn renaming_never_unprotects() {
    let mut world = World::own(setup(), &[EMAIL]);
    let first = world.bound.generation;
    world
        .db
        .psql("alter table customers rename column email to mail")
        .unwrap();
    world.rebind(&[EMAIL]);
    assert!(world.bound.generation > first);
    assert!(
        world.unresolved.iter().any(|one| one.was_bound),
        "{:#?}",
        world.unresolved
    );
    assert_eq!(world.code("select mail from customers"), 12);
    // Another column under the old name does not open what it was.
    world
        .db
        .psql("alter table customers add column email text")
        .unwrap();
    world.rebind(&[EMAIL]);
    assert_eq!(world.code("select mail from customers"), 12);
    world.rebind(&[EMAIL]);
    assert_eq!(world.code("select mail from customers"), 12);
    // The policy, mended, does.
    let mended =
        "defaultAction: Allow\nmasks: [{name: m, columns: [public.customers.mail], mask: {type: Email}}]";
    world.rebind(&[mended]);
    assert_eq!(
        world.run("select mail from customers where id = 1"),
        "a***@example.com"
    );
}

#[test]
fn a_renamed_table_stays_closed_by_its_oid() {
    let mut world = World::own(setup(), &[EMAIL]);
    world
        .db
        .psql("alter table customers rename to clients; create table customers (id int, email text)")
        .unwrap();
    world.rebind(&[EMAIL]);
    assert_eq!(world.code("select email from clients"), 12);
    assert!(world.sent("select email from customers").contains("CASE"));
    world.db.psql("drop table clients").unwrap();
    world.rebind(&[EMAIL]);
    assert_eq!(world.unresolved, []);
}

#[test]
fn deny_rules_and_filters_follow_a_renamed_table() {
    let spec = "defaultAction: Allow
access: [{name: never, effect: Deny, actions: [Select], tables: [public.other]}]
rowFilters: [{name: own, tables: [public.customers], predicate: \"tenant = 'a'\"}]";
    let mut world = World::own(setup(), &[spec]);
    assert_eq!(world.run("select id from customers"), "1");
    world
        .db
        .psql("alter table other rename to another; alter table customers rename to clients")
        .unwrap();
    world.rebind(&[spec]);
    assert_eq!(world.code("select * from another"), 10);
    assert_eq!(world.code("select * from clients"), 12);
    // A table that is made later is denied by its name.
    world.db.psql("create table other (id int)").unwrap();
    world.rebind(&[spec]);
    assert_eq!(world.code("select * from other"), 10);
    assert_eq!(world.code("select * from another"), 10);
}

#[test]
fn quoted_names_labels_and_schemas() {
    let spec = "defaultAction: Allow
classifications: [{label: pii.mail, columns: ['PUBLIC.customers.\"E Mail\"', public.customers.email]}]
masks: [{name: m, columnLabels: ['pii.*'], mask: {type: Constant, value: hidden}}]
rowFilters: [{name: f, tables: ['sealed.*'], predicate: 'open'}]";
    let world = World::own(
        "create table customers (id int, email text, \"E Mail\" text); insert into customers values (1, 'a', 'b');
         create schema sealed; create table sealed.one (a int, open bool); create table sealed.two (a int);
         insert into sealed.one values (1, true), (2, false), (3, null)",
        &[spec],
    );
    assert_eq!(
        world.run("select email, \"E Mail\" from customers"),
        "hidden|hidden"
    );
    assert_eq!(world.run("select a from sealed.one"), "1");
    assert_eq!(world.code("select a from sealed.two"), 12);
}

#[test]
fn a_filter_must_be_quiet_and_keep_to_its_table() {
    for (predicate, works) in [
        ("tenant = 'a'", true),
        ("tenant = 'a' and id > 0", true),
        ("id in (1, 2)", true),
        ("tenant is not null or id <= 3", true),
        ("tenant::int = 5", false),
        ("1 / id > 0", false),
        ("id + 1 > 0", false),
        ("opaque(tenant)", false),
        ("nothing = 1", false),
        ("xmin = 1", false),
        ("customers is not null", false),
    ] {
        let spec = format!(
            "defaultAction: Allow\nrowFilters: [{{name: f, tables: [public.customers], predicate: \"{predicate}\"}}]"
        );
        let setup = format!(
            "{}create function opaque(text) returns bool language plpgsql as 'begin return true; end'",
            setup()
        );
        let world = World::own(&setup, &[&spec]);
        let code = world.code("select id from customers");
        assert_eq!(
            code == 0,
            works,
            "{predicate}: {code} {:?}",
            world.decide("select id from customers").err()
        );
        assert_eq!(
            world.unresolved.is_empty(),
            works,
            "{predicate}: {:#?}",
            world.unresolved
        );
    }
}

#[test]
fn masks_hold_for_parents_children_and_partitions() {
    let setup = "create table parent (id int, email text, tenant text); create table child (extra int) inherits (parent);
        create table parted (id int, email text, tenant text) partition by list (tenant);
        create table part_a partition of parted for values in ('a');
        create table part_b partition of parted for values in ('b');
        insert into child values (1, 'ann@example.com', 'a', 1);
        insert into parted values (1, 'ann@example.com', 'a'), (2, 'bob@example.com', 'b');";
    let spec = "defaultAction: Allow
masks:
- {name: m, columns: [public.parent.email, public.part_a.email], mask: {type: Email}}";
    let world = World::own(setup, &[spec]);
    for sql in [
        "select email from parent",
        "select email from child",
        "select email from parted where id = 1",
        "select email from part_a",
    ] {
        assert_eq!(world.run(sql), "a***@example.com", "{sql}");
    }
    let filter = "defaultAction: Allow
rowFilters: [{name: f, tables: [public.parted, public.child], predicate: \"tenant = 'b'\"}]";
    let world = World::own(setup, &[filter]);
    assert_eq!(world.run("select id from parted"), "2");
    assert_eq!(world.run("select id from part_a"), "");
    assert_eq!(world.run("select id from child"), "");
    // The parent shows the child's rows, and the filter does not reach them there.
    assert_eq!(world.code("select id from parent"), 12);
}

#[test]
fn generated_columns_read_null() {
    let setup = "create table customers (id int, email text, domain text generated always as (split_part(email, '@', 2)) stored);
        insert into customers values (1, 'ann@example.com')";
    let world = World::own(setup, &[EMAIL]);
    assert_eq!(
        world.run("select id, email, domain is null from customers"),
        "1|a***@example.com|t"
    );
}

#[test]
fn views_carry_masks_by_lineage() {
    let setup = format!(
        "{}create view same as select id, email as address from customers;
         create view over as select address, id from same;
         create view computed as select id, lower(email) as mail, count(*) over () as n from customers;
         create view counted as select count(email) as n, max(email) as top from customers;
         create view whole as select id, to_json(customers) as j from customers;
         create view cased as select case when email like 'a%' then 1 else 0 end as starts from customers;
         create view plain as select id, tenant from customers;
         create materialized view stored as select id, email from customers;",
        setup()
    );
    let world = World::own(&setup, &[EMAIL]);
    assert_eq!(
        world.run("select address from same where id = 1"),
        "a***@example.com"
    );
    assert_eq!(
        world.run("select address from over where id = 1"),
        "a***@example.com"
    );
    assert_eq!(
        world.run("select email from stored where id = 1"),
        "a***@example.com"
    );
    assert_eq!(world.run("select mail is null, n from computed limit 1"), "t|2");
    assert_eq!(world.run("select n is null, top is null from counted"), "t|t");
    assert_eq!(world.run("select j is null from whole limit 1"), "t");
    assert_eq!(world.run("select starts is null from cased limit 1"), "t");
    assert_eq!(world.run("select * from plain order by id"), "1|a\n2|b");
}

#[test]
fn views_carry_filters_where_they_can_and_are_closed_where_not() {
    let setup = format!(
        "{}create view shown as select tenant as t, id from customers;
         create view over as select t as owner, id from shown;
         create view narrow as select id from customers;
         create view twice as select a.tenant, b.id from customers a, customers b;
         create view grouped as select tenant, count(*) as n from customers group by tenant;
         create view changed as select tenant || '' as tenant, id from customers;
         create view joined as select c.tenant, o.note from customers c left join other o on o.id = c.id;
         create materialized view stored as select tenant, id from customers;
         create materialized view lacking as select id from customers;",
        setup()
    );
    let spec = "defaultAction: Allow
rowFilters:
- {name: own, tables: [public.customers], predicate: 'tenant = :claims.tenant', exceptSubjects: [{group: leads}]}";
    let world = World::own(&setup, &[spec]).with_claim("tenant", "a");
    assert_eq!(world.run("select * from shown"), "a|1");
    assert_eq!(world.run("select * from over"), "a|1");
    assert_eq!(world.run("select tenant from joined"), "a");
    assert_eq!(world.run("select * from stored"), "a|1");
    for view in ["narrow", "twice", "grouped", "changed", "lacking"] {
        assert_eq!(world.code(&format!("select * from {view}")), 12, "{view}");
    }
    let leads = World::own(&setup, &[spec]).in_group("leads");
    assert_eq!(leads.code("select * from narrow"), 0);
}

#[test]
fn a_view_that_cannot_be_read_or_reads_what_is_closed_is_closed() {
    let setup = format!("{}create view v as select id from customers;", setup());
    let spec =
        "defaultAction: Allow\nmasks: [{name: m, columns: [public.customers.nothing], mask: {type: Email}}]";
    let world = World::own(&setup, &[spec]);
    assert_eq!(world.code("select * from v"), 12);
    assert_eq!(world.code("select * from other"), 0);
}

#[test]
fn a_mask_that_the_type_does_not_have_reads_null_and_is_told() {
    let spec = "defaultAction: Allow
masks:
- {name: wrong, columns: [public.customers.id], mask: {type: Email}}
- {name: unfit, columns: [public.numbers.n], mask: {type: Constant, value: many}}";
    let setup = format!(
        "{}create table numbers (n int); insert into numbers values (7)",
        setup()
    );
    let world = World::own(&setup, &[spec]);
    assert_eq!(world.unresolved.len(), 2, "{:#?}", world.unresolved);
    assert_eq!(world.run("select n is null from numbers"), "t");
    assert_eq!(world.run("select count(id) from customers"), "0");
}

#[test]
fn a_table_made_by_the_open_transaction_is_closed_if_a_rule_names_it() {
    use sql_facts::Overlay;
    let mut world = World::own(setup(), &[EMAIL]);
    let script = format!(
        "begin; drop table customers; create table customers (id int, email text); create table fresh (id int); {}",
        Overlay::load_sql()
    );
    let printed = world.db.psql(&script).unwrap();
    let rows = printed.lines().filter_map(|line| line.split_once('|'));
    world.overlay = Overlay::from_rows(&world.catalog, rows).unwrap();
    assert_eq!(world.code("select * from customers"), 13);
    assert_eq!(world.code("select * from fresh"), 0);
}
