WITH scope AS MATERIALIZED (
  /*scope*/
)
SELECT 'session'::pg_catalog.text AS kind, pg_catalog.json_build_array(
    pg_catalog.current_schemas(true),
    (SELECT n.nspname FROM pg_catalog.pg_namespace AS n WHERE n.oid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())
  )::pg_catalog.text AS row
UNION ALL
SELECT 'schema', pg_catalog.to_json(n.nspname)::pg_catalog.text
FROM pg_catalog.pg_namespace AS n
WHERE NOT pg_catalog.pg_is_other_temp_schema(n.oid)
  /*changed n.oid n*/
UNION ALL
SELECT 'type', pg_catalog.json_build_array(
    t.oid, n.nspname, t.typname, t.typtype, t.typcategory, t.typispreferred, a.oid, a.typname,
    CASE WHEN t.typtype OPERATOR(pg_catalog.=) 'd' THEN t.typbasetype
         WHEN t.typtype OPERATOR(pg_catalog.=) 'c' THEN t.typrelid
         WHEN t.typtype OPERATOR(pg_catalog.=) 'r' THEN r.rngsubtype
         WHEN t.typtype OPERATOR(pg_catalog.=) 'm' THEN m.rngtypid
         ELSE t.typelem END,
    t.typtypmod, t.typcollation,
    (t.typtype OPERATOR(pg_catalog.=) 'b' AND t.typinput::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid)
      OR r.rngcanonical::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid,
    t.typnotnull, k.checks, COALESCE(k.user_code, false)
  )::pg_catalog.text
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
LEFT JOIN pg_catalog.pg_type AS a ON a.oid OPERATOR(pg_catalog.=) t.typarray
LEFT JOIN pg_catalog.pg_type AS e ON e.oid OPERATOR(pg_catalog.=) t.typelem
LEFT JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) t.typrelid
LEFT JOIN pg_catalog.pg_range AS r ON r.rngtypid OPERATOR(pg_catalog.=) t.oid
LEFT JOIN pg_catalog.pg_range AS m ON (pg_catalog.to_jsonb(m) OPERATOR(pg_catalog.->>) 'rngmultitypid')::pg_catalog.oid OPERATOR(pg_catalog.=) t.oid
LEFT JOIN (
  SELECT k.contypid, pg_catalog.json_agg(pg_catalog.pg_get_constraintdef(k.oid)) AS checks,
         pg_catalog.bool_or(EXISTS (SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid OPERATOR(pg_catalog.=) 2606::pg_catalog.oid AND d.objid OPERATOR(pg_catalog.=) k.oid
              AND d.refclassid OPERATOR(pg_catalog.=) ANY (ARRAY[1255, 2617]::pg_catalog.oid[]))) AS user_code
  FROM pg_catalog.pg_constraint AS k
  WHERE k.contypid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid AND k.contype OPERATOR(pg_catalog.=) 'c'
  GROUP BY k.contypid
) AS k ON k.contypid OPERATOR(pg_catalog.=) t.oid
WHERE NOT pg_catalog.pg_is_other_temp_schema(n.oid)
  AND (t.typrelid OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR c.relkind OPERATOR(pg_catalog.=) 'c')
  AND (e.typarray OPERATOR(pg_catalog.=) t.oid) IS NOT TRUE
  /*changed t.typnamespace t*/
UNION ALL
SELECT 'relation', pg_catalog.json_build_array(
    c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.reltype, t.typarray, y.typname,
    CASE WHEN c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['v']::pg_catalog."char"[]) THEN c.reloptions END,
    COALESCE(i.indrelid, o.oid), a.columns, c.relnatts
  )::pg_catalog.text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
LEFT JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) c.reltype
LEFT JOIN pg_catalog.pg_type AS y ON y.oid OPERATOR(pg_catalog.=) t.typarray
LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid OPERATOR(pg_catalog.=) c.oid
LEFT JOIN pg_catalog.pg_class AS o ON o.reltoastrelid OPERATOR(pg_catalog.=) c.oid AND c.relkind OPERATOR(pg_catalog.=) 't'
LEFT JOIN (
  SELECT a.attrelid, pg_catalog.json_agg(pg_catalog.json_build_array(
      a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef,
      a.attgenerated OPERATOR(pg_catalog.<>) '',
      g.nspname, l.collname,
      CASE WHEN a.atttypmod OPERATOR(pg_catalog.<>) (-1) AND a.atttypid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
           THEN pg_catalog.format_type(a.atttypid, a.atttypmod) END,
      a.attidentity
    ) ORDER BY a.attnum) AS columns
  FROM pg_catalog.pg_attribute AS a
  LEFT JOIN pg_catalog.pg_collation AS l ON l.oid OPERATOR(pg_catalog.=) a.attcollation
    AND a.attcollation OPERATOR(pg_catalog.<>) 100::pg_catalog.oid
  LEFT JOIN pg_catalog.pg_namespace AS g ON g.oid OPERATOR(pg_catalog.=) l.collnamespace
  WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  GROUP BY a.attrelid
) AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
  AND c.relkind OPERATOR(pg_catalog.<>) ALL (ARRAY['i', 'I', 't']::pg_catalog."char"[])
WHERE c.oid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
  AND (c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
    OR c.relkind OPERATOR(pg_catalog.<>) ALL (ARRAY['i', 'I']::pg_catalog."char"[]))
UNION ALL
SELECT 'view', pg_catalog.json_build_array(c.oid, pg_catalog.pg_get_viewdef(c.oid))::pg_catalog.text
FROM pg_catalog.pg_class AS c
WHERE c.oid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
  AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
  AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['v', 'm']::pg_catalog."char"[])
UNION ALL
SELECT 'primary', pg_catalog.json_build_array(
    i.indrelid, (i.indkey::pg_catalog.int2[])[0:(i.indnkeyatts OPERATOR(pg_catalog.-) 1)])::pg_catalog.text
FROM pg_catalog.pg_index AS i
WHERE i.indisprimary AND i.indrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'parent', pg_catalog.json_build_array(
    h.inhrelid, pg_catalog.json_agg(h.inhparent ORDER BY h.inhseqno))::pg_catalog.text
FROM pg_catalog.pg_inherits AS h
WHERE h.inhrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
GROUP BY h.inhrelid
UNION ALL
SELECT 'trigger', pg_catalog.json_build_array(
    g.tgrelid, g.tgname,
    (g.tgtype OPERATOR(pg_catalog.&) 3::pg_catalog.int2) OPERATOR(pg_catalog.=) 3
      AND (g.tgtype OPERATOR(pg_catalog.&) 20::pg_catalog.int2) OPERATOR(pg_catalog.<>) 0)::pg_catalog.text
FROM pg_catalog.pg_trigger AS g
WHERE NOT g.tgisinternal AND g.tgrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'rule', pg_catalog.json_build_array(r.ev_class, r.rulename)::pg_catalog.text
FROM pg_catalog.pg_rewrite AS r
WHERE r.rulename OPERATOR(pg_catalog.<>) '_RETURN' AND r.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
  AND r.ev_class OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'owned', pg_catalog.json_build_array(d.objid, d.refobjid, d.refobjsubid)::pg_catalog.text
FROM pg_catalog.pg_depend AS d
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.objid AND c.relkind OPERATOR(pg_catalog.=) 'S'
WHERE d.classid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid AND d.refclassid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid
  AND d.refobjsubid OPERATOR(pg_catalog.>) 0
  AND d.deptype OPERATOR(pg_catalog.=) ANY (ARRAY['a', 'i']::pg_catalog."char"[])
  AND d.objid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'used', pg_catalog.json_build_array(c.oid, f.adrelid, f.adnum)::pg_catalog.text
FROM pg_catalog.pg_attrdef AS f
JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 2604::pg_catalog.oid
  AND d.objid OPERATOR(pg_catalog.=) f.oid AND d.refclassid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.refobjid AND c.relkind OPERATOR(pg_catalog.=) 'S'
WHERE c.oid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'default', pg_catalog.json_build_array(f.adrelid, f.adnum, n.nspname, p.proname)::pg_catalog.text
FROM pg_catalog.pg_attrdef AS f
JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 2604::pg_catalog.oid
  AND d.objid OPERATOR(pg_catalog.=) f.oid
  AND d.refclassid OPERATOR(pg_catalog.=) ANY (ARRAY[1255, 2617]::pg_catalog.oid[])
LEFT JOIN pg_catalog.pg_operator AS o ON d.refclassid OPERATOR(pg_catalog.=) 2617::pg_catalog.oid
  AND o.oid OPERATOR(pg_catalog.=) d.refobjid
JOIN pg_catalog.pg_proc AS p
  ON p.oid OPERATOR(pg_catalog.=) COALESCE(o.oprcode::pg_catalog.oid, d.refobjid)
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
WHERE f.adrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'generated', pg_catalog.json_build_array(
    a.attrelid, a.attnum, pg_catalog.json_agg(DISTINCT d.refobjsubid))::pg_catalog.text
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_attrdef AS f ON f.adrelid OPERATOR(pg_catalog.=) a.attrelid AND f.adnum OPERATOR(pg_catalog.=) a.attnum
JOIN pg_catalog.pg_depend AS d ON d.refclassid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid
  AND d.refobjid OPERATOR(pg_catalog.=) a.attrelid AND d.refobjsubid OPERATOR(pg_catalog.>) 0
  AND d.refobjsubid OPERATOR(pg_catalog.<>) a.attnum
  AND ((d.classid OPERATOR(pg_catalog.=) 2604::pg_catalog.oid AND d.objid OPERATOR(pg_catalog.=) f.oid)
    OR (d.classid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid AND d.objid OPERATOR(pg_catalog.=) a.attrelid
      AND d.objsubid OPERATOR(pg_catalog.=) a.attnum))
WHERE a.attgenerated OPERATOR(pg_catalog.<>) ''
  AND a.attrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
GROUP BY a.attrelid, a.attnum
UNION ALL
SELECT 'cascade', pg_catalog.json_build_array(
    k.confrelid, k.conrelid,
    k.confdeltype OPERATOR(pg_catalog.=) ANY (ARRAY['c', 'n', 'd']::pg_catalog."char"[]),
    k.confupdtype OPERATOR(pg_catalog.=) ANY (ARRAY['c', 'n', 'd']::pg_catalog."char"[]))::pg_catalog.text
FROM pg_catalog.pg_constraint AS k
WHERE k.contype OPERATOR(pg_catalog.=) 'f' AND k.confrelid OPERATOR(pg_catalog.=) ANY (SELECT s.relation FROM scope AS s)
UNION ALL
SELECT 'function', pg_catalog.json_build_array(
    p.oid, n.nspname, p.proname, p.prokind, p.pronargs, p.pronargdefaults,
    p.provariadic OPERATOR(pg_catalog.<>) 0::pg_catalog.oid, p.proargtypes::pg_catalog.oid[])::pg_catalog.text
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
WHERE (p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
    OR n.nspname OPERATOR(pg_catalog.<>) ALL (ARRAY['pg_catalog', 'information_schema']::pg_catalog.name[]))
  /*changed p.pronamespace p*/
UNION ALL
SELECT 'operator', pg_catalog.json_build_array(
    o.oid, n.nspname, o.oprname, o.oprleft, o.oprright, o.oprcode::pg_catalog.oid)::pg_catalog.text
FROM pg_catalog.pg_operator AS o
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
WHERE (o.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
    OR n.nspname OPERATOR(pg_catalog.<>) ALL (ARRAY['pg_catalog', 'information_schema']::pg_catalog.name[]))
  /*changed o.oprnamespace o*/
UNION ALL
SELECT 'cast', pg_catalog.json_build_array(
    k.castsource, k.casttarget, k.castfunc, k.castcontext)::pg_catalog.text
FROM pg_catalog.pg_cast AS k
WHERE k.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
  /*changed 0 k*/
