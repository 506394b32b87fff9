use test_support::{shared_postgres, shop};

#[test]
fn the_shop_is_the_same_everywhere() {
    let db = shared_postgres().unwrap().database().unwrap();
    shop::load(&db).unwrap();
    let counts = "select (select count(*) from products), (select count(*) from customers), \
                  (select count(*) from orders), (select count(*) from payroll)";
    assert_eq!(db.psql(counts).unwrap(), "100|1400|3400|100");
    // If this changes, every expected result that stands on the shop changes with it.
    let digest = "select md5(string_agg(line, '' order by line)) from (select c::text as line from customers c \
                  union all select p::text from products p union all select o::text from orders o \
                  union all select e::text from payroll e) rows";
    assert_eq!(db.psql(digest).unwrap(), "6b769e10da1ddf9d74ab23e38af05cd2");
}
