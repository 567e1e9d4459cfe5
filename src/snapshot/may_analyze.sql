CASE WHEN pg_catalog.current_setting('server_version_num')::int4 < 170000 THEN pg_catalog.pg_has_role(c.relowner, 'USAGE')
     ELSE pg_catalog.has_table_privilege(c.oid, 'MAINTAIN') END
OR EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database() AND pg_catalog.pg_has_role(d.datdba, 'USAGE'))
