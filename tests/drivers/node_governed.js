// node-postgres on governed tables. Arguments: port, database.
const assert = require('assert');
const { Client } = require('pg');
const Cursor = require('pg-cursor');
const [port, database] = process.argv.slice(2);

(async () => {
  const client = new Client({ host: '127.0.0.1', port: Number(port), database, user: 'shop_app' });
  await client.connect();
  for (let i = 0; i < 4; i++) {
    const named = await client.query({ name: 'n', text: 'select email, salary, card from customers where id = $1', values: [1] });
    assert.deepStrictEqual([named.rows[0].email, named.rows[0].salary, named.rows[0].card.length], ['a***@example.com', '0', 64]);
    const binary = await client.query({ text: 'select email, ssn from customers where id = $1', values: [1], binary: true });
    assert.deepStrictEqual(binary.rows, [{ email: 'a***@example.com', ssn: null }]);
  }
  const cursor = client.query(new Cursor('select email from customers order by id'));
  assert.deepStrictEqual((await cursor.read(1)).map(r => r.email), ['a***@example.com']);
  assert.deepStrictEqual((await cursor.read(5)).map(r => r.email), ['b***@example.org', 'c***@example.net']);
  await cursor.close();
  for (const attempt of ['delete from scratch', 'select * from payroll', 'select 1; delete from scratch']) {
    await assert.rejects(client.query(attempt), error => error.code === '42501' && error.message.startsWith('WEIR-'));
  }
  await assert.rejects(client.query('delete from scratch where id > $1 or true', [0]), error => error.code === '42501');
  assert.strictEqual((await client.query('select count(*)::int as n from scratch')).rows[0].n, 3);
  await client.end();
  console.log('done');
})().catch(error => { console.error(error); process.exit(1); });
