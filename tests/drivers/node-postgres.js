// node-postgres against a freshly loaded shop; see psycopg3.py.   usage: node-postgres.js URL
'use strict'
const { Client, Pool } = require('pg')
const Cursor = require('pg-cursor')
const { from: copyFrom, to: copyTo } = require('pg-copy-streams')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const { inspect } = require('node:util')

const url = process.argv[2]
const show = (name, value) =>
  console.log(name + ': ' + inspect(value, { depth: 9, breakLength: Infinity, maxArrayLength: null, maxStringLength: null, compact: true }))
const attempt = async (name, work) => {
  try {
    show(name, await work())
  } catch (e) {
    if (!e.code) throw e
    show(name, ['error', e.code, e.severity, e.message, e.detail, e.hint, e.position, e.constraint, e.table])
  }
}
const shape = (r) => ({ command: r.command, count: r.rowCount, fields: (r.fields || []).map((f) => [f.name, f.dataTypeID, f.format]), rows: r.rows })

async function main() {
  const client = new Client({ connectionString: url })
  const notices = []
  client.on('notice', (n) => notices.push([n.severity, n.code, n.message]))
  await client.connect()
  await attempt('types', async () => shape(await client.query(`select true as b, 7::int2 as i2, 9007199254740993::int8 as i8, 1.5::float4 as f4,
    123.4500::numeric as n, 'ünï→😀'::text as t, '\\x00ff10'::bytea as y, timestamptz '2024-01-01 01:02:03+02' as tz, '{1,2,null}'::int[] as ia,
    '{"k": [1]}'::jsonb as j, null::int as nothing, '2f1b7d6e-0000-4000-8000-00000000abcd'::uuid as u`)))
  await attempt('customers', async () => shape(await client.query('select * from customers order by id limit 30')))
  await attempt('array rows', async () => shape(await client.query({ text: 'select id, name from products order by id limit 3', rowMode: 'array' })))
  for (const round of [1, 2, 3]) {
    await attempt('named ' + round, async () =>
      shape(await client.query({ name: 'by-id', text: 'select id, email, loyalty from customers where id = $1', values: [round] })))
  }
  await attempt('binary', async () => shape(await client.query({ text: 'select id, loyalty, name, tenant_id = $1 as mine from customers order by id limit 4', values: ['north'], binary: true })))
  await attempt('parameters', async () => shape(await client.query('select $1::text as t, $2::int as i, $3::jsonb as j, $4::bytea as y, $5::int[] as a, $6::timestamptz as z',
    ["a'b\\c", 42, { a: [1] }, Buffer.from([0, 1]), [1, null], new Date(0)])))
  await attempt('several', async () => (await client.query('select 1 as a; select 2 as b; update products set stock = stock where id < 3')).map(shape))
  await attempt('empty', async () => shape(await client.query('')))
  for (const text of ['selec 1', 'select * from nowhere', 'select 1/0', "select 'abc'::int", "insert into products values (1, 'SKU-0001', 'x', 'x', 1)"]) {
    await attempt(text, async () => shape(await client.query(text)))
  }
  await attempt('error with parameters', async () => shape(await client.query('select 1 / $1::int', [0])))
  await attempt('after errors', async () => shape(await client.query('select $1::text as fine', ['yes'])))
  await attempt('transaction', async () => {
    await client.query('begin')
    await client.query('insert into reports (title) values ($1)', ['kept'])
    await client.query('savepoint s')
    await client.query('nonsense').catch(() => {})
    const inside = await client.query('select 1').catch((e) => e.code)
    await client.query('rollback to s')
    await client.query('commit')
    return [inside, (await client.query('select title from reports')).rows]
  })
  await attempt('cursor', async () => {
    const cursor = client.query(new Cursor('select id, total from orders where id > $1 order by id', [10]))
    const first = await cursor.read(5)
    const second = await cursor.read(3)
    await cursor.close()
    return [first, second]
  })
  await attempt('copy out', async () => {
    let text = ''
    for await (const block of client.query(copyTo('copy (select id, name, email from customers order by id limit 300) to stdout csv header'))) text += block
    return text
  })
  await attempt('copy in', async () => {
    await client.query('create temp table incoming (a int, b text)')
    const lines = Array.from({ length: 5000 }, (_, n) => `${n}\trow ${n}\n`)
    await pipeline(Readable.from(lines), client.query(copyFrom('copy incoming from stdin')))
    return (await client.query('select count(*), sum(a), max(length(b)) from incoming')).rows
  })
  await attempt('copy in, bad data', async () => pipeline(Readable.from(['x\ty\n']), client.query(copyFrom('copy incoming from stdin'))))
  await attempt('notify', async () => {
    const heard = new Promise((resolve) => client.once('notification', (n) => resolve([n.channel, n.payload])))
    await client.query('listen weir_channel')
    await client.query("notify weir_channel, 'hello'")
    return heard
  })
  await attempt('notice', async () => {
    await client.query('drop table if exists never_there')
    return notices
  })
  await attempt('queued', async () => (await Promise.all([1, 2, 3, 4, 5].map((n) => client.query('select $1::int * 2 as n', [n])))).map((r) => r.rows[0].n))
  await attempt('large', async () => (await client.query('select length($1::text) as n, md5($1::text)', ['x'.repeat(2_000_000)])).rows)
  await client.end()

  const pool = new Pool({ connectionString: url, max: 4 })
  await attempt('pool', async () => (await Promise.all(Array.from({ length: 30 }, (_, n) => pool.query('select email from customers where id = $1', [n + 1])))).map((r) => r.rows[0].email))
  await pool.end()
  show('end', 'reached')
}

main().catch((e) => { console.error(e); process.exit(1) })
