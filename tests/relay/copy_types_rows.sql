-- Rows at the edges of every type.
INSERT INTO builtin VALUES (1, true, '\x00ff5c', 'c', 'na''me', -5, 9223372036854775807, 'nan', '-infinity', 'nan', 1.235, '-12.34', 'ab',
    E'tab\t nl\n cr\r bs\\ é', '0044-03-15 BC', '23:59:59.999999', '01:02:03+05:30', 'infinity', '-infinity',
    '-1 year -2 mons +3 days -04:05:06.7', '10101', '1', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": 1,  "a":2}', '{"b": [1, null]}',
    '$.a[*] ? (@ > 1)', '<a/>some<b/>', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '(1.5,-2)', '{1,2,3}',
    '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1),(2,0))', '<(0,0),1>', 'a:1A b:2', 'a & !b', '16/B374D848',
    '123456789012', 4294967295, '[1,5)', '(,1.5]', '[2020-01-01 00:00+00,infinity)', '{[1,2),[5,9)}', '{1,NULL,3}',
    '{{a,"b,c"},{NULL,"\"\""}}', '{"{\"a\":1}"}', '{1.1.1.1}', '10:20:10,14,15', '(1,2)');
INSERT INTO builtin VALUES (2);
INSERT INTO builtin (id, i, h, q, p) VALUES (3, 'infinity', 'infinity', '4714-11-24 00:00:00 BC', '24:00:00-15:59:59'),
    (4, '1e-200', 5e-324, '294276-12-31 23:59:59.999999', NULL), (5, '99999999999999999999999999999999.5', 1.1, NULL, NULL);
INSERT INTO named VALUES (1, 'sad', '12345', '\.'), (2, 'it''s', '', '\N'), (3, NULL, NULL, '');
INSERT INTO composed VALUES (1, '{sad,NULL,ok}', 'ok', ROW (1, 'x,y')::pair, '[1,2]', 'a=>1, b=>NULL', '{a,b}');
INSERT INTO composed VALUES (2);
INSERT INTO referring VALUES (1, 'named', 'mood', 'lower(text)', NULL), (2, 'pg_class', 'int4', NULL, ARRAY['postgres=r/postgres']::aclitem[]);
INSERT INTO identity_columns (t) SELECT 'row ' || i FROM generate_series(1, 10) i;
INSERT INTO no_columns SELECT FROM generate_series(1, 7);
INSERT INTO "Odd ""name" VALUES (1, 'x');
