-- About 5,000 rows: 100 products, 1,400 customers, 3,400 orders, 100 people on the payroll.
-- Plain arithmetic instead of random(), whose numbers differ from one server version to the next.

insert into public.products
select i,
       'SKU-' || lpad(i::text, 4, '0'),
       (array['Linen','Oak','Copper','Wool','Glass','Cedar','Slate','Cork','Brass','Clay'])[1 + i % 10]
         || ' ' || (array['lamp','chair','bowl','shelf','vase','tray','clock','mat','hook','jar'])[1 + (i / 10) % 10],
       (array['light','seats','kitchen','storage','decor'])[1 + i % 5],
       round((5 + (i * 7919 % 20000) / 100.0)::numeric, 2),
       i * 37 % 500
from generate_series(1, 100) i;

insert into public.customers
select i,
       case when i % 3 = 0 then 'south' else 'north' end,
       first || ' ' || last,
       lower(first) || '.' || lower(last) || i || '@' || (array['example.com','example.org','mail.example'])[1 + i % 3],
       '+49 30 ' || lpad((i * 104729 % 10000000)::text, 7, '0'),
       date '1945-01-01' + (i * 7907 % 22000),
       (array['Berlin','Hamburg','Leipzig','Bremen','Mainz','Kassel','Ulm'])[1 + i * 31 % 7],
       'DE',
       4000000000 + i * 15485863::bigint % 1000000,
       case when i % 11 = 0 then null else (i * 97 % 50) * 100 end,
       ('00000000-0000-4000-8000-' || lpad(to_hex(i * 7919), 12, '0'))::uuid,
       jsonb_build_object('newsletter', i % 2 = 0, 'contact', jsonb_build_object('email', lower(first) || i || '@example.net')),
       timestamptz '2024-01-01 08:00:00+00' + make_interval(hours => i * 13 % 15000)
from (
  select i,
         (array['Ada','Boris','Clara','David','Elif','Farid','Greta','Hugo','Ines','Jonas','Kira','Leon','Mira','Noah'])[1 + i * 17 % 14] as first,
         (array['Adler','Brandt','Conrad','Dietz','Ebert','Frank','Gruber','Haas','Iversen','Jung','Keller'])[1 + i * 29 % 11] as last
  from generate_series(1, 1400) i
) people;

insert into public.orders (id, tenant_id, customer_id, product_id, quantity, total, status, ordered_at)
select i, c.tenant_id, c.id, p.id, 1 + i % 5, p.price * (1 + i % 5),
       (array['new','paid','paid','sent','sent','sent','returned'])[1 + i % 7],
       timestamptz '2025-01-01 00:00:00+00' + make_interval(mins => i * 151 % 525600)
from generate_series(1, 3400) i
join public.customers c on c.id = 1 + i * 7919 % 1400
join public.products p on p.id = 1 + i * 31 % 100;
select setval(pg_get_serial_sequence('public.orders', 'id'), 3400);

insert into public.payroll
select i, 'Employee ' || i, 'employee' || i || '@shop.example',
       'DE' || lpad((i * 15485863::bigint % 100000000)::text, 8, '0') || lpad((i * 32452843::bigint % 1000000000)::text, 12, '0'),
       30000 + (i * 7919 % 70000), case when i % 4 = 0 then null else i * 53 % 9000 end,
       date '2010-01-01' + (i * 379 % 5000)
from generate_series(1, 100) i;

analyze;
