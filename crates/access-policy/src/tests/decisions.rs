//! `decide` on real catalogs.

use super::world::World;

const SHOP: &str = "
    create table customers (id int primary key, tenant text not null, name text, email text, phone varchar(20),
      birth date, code char(8), amount numeric(5,2));
    insert into customers values (1,'a','Ann','ann@example.com','+431234567','1980-05-06','c1',1.5),
      (2,'b','Bob','bob@example.com','+437654321','1990-07-08','c2',2);";

const MASKS: &str = "defaultAction: Allow
masks:
- {name: mail, columns: [public.customers.email], mask: {type: Email}, exceptSubjects: [{group: leads}]}
- {name: tel, columns: [public.customers.phone], mask: {type: Partial, keepLast: 3}}
- {name: born, columns: [public.customers.birth], mask: {type: DateTrunc, unit: Year}}
- {name: const, columns: [public.customers.name], mask: {type: Constant, value: someone}}
- {name: nul, columns: [public.customers.amount], mask: {type: 'Null'}}";

#[test]
fn masked_values_are_what_the_server_sees() {
    let world = World::new(SHOP, &[MASKS]);
    assert_eq!(world.unresolved, []);
    assert_eq!(
        world.run("select * from customers order by id limit 1"),
        "1|a|someone|a***@example.com|*******567|1980-01-01|c1      |"
    );
    assert_eq!(
        world.run("select count(*) from customers where email like 'ann%'"),
        "0"
    );
    assert_eq!(
        world.run("select to_json(c)->>'email' from customers c where id = 2"),
        "b***@example.com"
    );
    let leads = World::new(SHOP, &[MASKS]).in_group("leads");
    assert_eq!(
        leads.run("select email, name from customers where id = 1"),
        "ann@example.com|someone"
    );
}
