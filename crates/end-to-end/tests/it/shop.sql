-- Every value that a governed session may not see holds the word "canary", or is one of the numbers and days that
-- harness/canary.rs names.
CREATE TABLE public.customers (
  id int PRIMARY KEY,
  name text NOT NULL,
  email text NOT NULL,                     -- mask Email
  phone varchar(24),                       -- mask Partial, keepLast 2
  ssn text UNIQUE,                         -- mask Null
  salary int8,                             -- mask Constant 0
  born date,                               -- mask DateTrunc Year
  card varchar(64),                        -- mask Hash
  balance numeric(10,2) CHECK (balance >= 0)
);
INSERT INTO public.customers VALUES
  (1, 'Ann', 'ann.canary@example.com', '+49-canary-10', 'canary-ssn-1', 7364501283349, '1987-06-15', 'canary-card-1', 10),
  (2, 'Bob', 'bob.canary@example.org', '+49-canary-20', 'canary-ssn-2', 7364501283350, '1987-09-23', 'canary-card-2', 20),
  (3, 'Cyd', 'canary@example.net', NULL, NULL, NULL, NULL, NULL, 30);

CREATE TABLE public.orders (
  id int PRIMARY KEY,
  tenant text DEFAULT 'b',                 -- row filter: tenant = claims.tenant (a)
  customer int REFERENCES public.customers,
  note text,
  amount int
);
INSERT INTO public.orders VALUES (1, 'a', 1, '10', 5), (2, 'a', 2, '20', 6), (3, 'a', 1, NULL, NULL);
INSERT INTO public.orders SELECT n, 'b', 2, 'canary-note-' || n, 881177 FROM generate_series(100, 3000) n;

CREATE TABLE public.lines (order_id int REFERENCES public.orders ON DELETE CASCADE, product text);
INSERT INTO public.lines VALUES (1, 'pen'), (1, 'ink'), (2, 'pad');

CREATE TABLE public.payroll (id int PRIMARY KEY, employee text, pay int8);   -- no rule names it
INSERT INTO public.payroll VALUES (1, 'canary-employee', 7364501283349);

CREATE TABLE public.scratch (id int PRIMARY KEY, body text, stamp timestamptz);   -- free
INSERT INTO public.scratch VALUES (1, 'one', NULL), (2, 'two', NULL), (3, 'three', NULL);

CREATE TABLE public.people (id int, secret text, twice int GENERATED ALWAYS AS (id * 2) STORED);   -- secret: Null
CREATE TABLE public.people_abroad (country text) INHERITS (public.people);
INSERT INTO public.people VALUES (1, 'canary-people');
INSERT INTO public.people_abroad VALUES (2, 'canary-abroad', DEFAULT, 'fr');

CREATE SCHEMA a;
CREATE TABLE a.t (id int, v text);
INSERT INTO a.t VALUES (1, 'plain');
CREATE SCHEMA b;
CREATE TABLE b.t (id int, v text);                                            -- v: mask Null
INSERT INTO b.t VALUES (1, 'canary-b');
CREATE SCHEMA c;
CREATE TABLE c.t (id int, v text);                                            -- no rule names it
INSERT INTO c.t VALUES (1, 'canary-c');

CREATE VIEW public.customer_view AS SELECT id, email AS contact, ssn || '' AS ssn, salary FROM public.customers;
CREATE VIEW public.customer_rows AS SELECT c FROM public.customers c;
CREATE VIEW public.payroll_view AS SELECT employee FROM public.payroll;
CREATE MATERIALIZED VIEW public.customer_copy AS SELECT id, email, ssn FROM public.customers;

-- Code whose body nobody outside sees.
CREATE FUNCTION public.wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM public.scratch; SELECT 1';
CREATE FUNCTION public.shout(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'heard %', $1; RETURN $1; END $$;
CREATE FUNCTION public.all_mails() RETURNS SETOF text LANGUAGE sql STABLE AS 'SELECT email FROM public.customers';
CREATE FUNCTION public.always(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE PROCEDURE public.purge() LANGUAGE sql AS 'DELETE FROM public.scratch';
CREATE OPERATOR public.<<<>>> (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq);
CREATE AGGREGATE public.gather(text) (SFUNC = textcat, STYPE = text);
CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'old row %', OLD; RETURN NEW; END $$;
CREATE TRIGGER tell BEFORE UPDATE ON public.customers FOR EACH ROW EXECUTE FUNCTION public.tell();

GRANT USAGE ON SCHEMA a, b, c TO shop_app;
GRANT ALL ON ALL TABLES IN SCHEMA public, a, b, c TO shop_app;
ANALYZE;
