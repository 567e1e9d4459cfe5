#!/usr/bin/env python3
"""Captures what a real Debezium writes for setup.sql and work.sql: one file per connector, beside this script.

Needs Java 17, psql, the account "postgres" (run it as root) and scripts/fetch-servers 17. FOLDER/libs holds the jars of
org.apache.kafka:kafka_2.13, kafka-tools (both 4.3.1) and log4j-slf4j-impl 2.25.4, FOLDER/plugins/debezium those of
io.debezium:debezium-connector-postgres:3.7.0.Final, each by `mvn dependency:copy-dependencies`.

    javac -cp 'FOLDER/libs/*' Dump.java && python3 capture.py FOLDER
"""
import json, os, re, subprocess, sys, time, shutil, socket
HERE = os.path.dirname(os.path.abspath(__file__)); DBZ = os.path.abspath(sys.argv[1])
PG = os.path.realpath(HERE + '/../../../../.servers/postgres-17')
def port():
    s = socket.socket(); s.bind(('127.0.0.1', 0)); p = s.getsockname()[1]; s.close(); return p
base = {"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1", "plugin.name": "pgoutput", "database.hostname": "127.0.0.1", "database.user": "postgres", "database.password": "x", "publication.autocreate.mode": "disabled", "snapshot.mode": "no_data", "database.dbname": "cap", "publication.name": "pd",
  "key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false", "key.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter": "org.apache.kafka.connect.json.JsonConverter"}
unwrap = {"transforms": "unwrap", "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState"}
sets = {
 "defaults": ({}, ""),
 "strings": ({"decimal.handling.mode": "string", "interval.handling.mode": "string", "time.precision.mode": "isostring", "binary.handling.mode": "hex"}, 'decimal = "string"\ninterval = "string"\ntime_precision = "isostring"\nbinary = "hex"'),
 "doubles": ({"decimal.handling.mode": "double", "time.precision.mode": "connect", "binary.handling.mode": "base64", "hstore.handling.mode": "map"}, 'decimal = "double"\ntime_precision = "connect"\nbinary = "base64"\nhstore = "map"'),
 "nanoseconds": ({"table.exclude.list": "public.fillers", "time.precision.mode": "nanoseconds", "binary.handling.mode": "base64-url-safe"}, 'time_precision = "nanoseconds"\nbinary = "base64-url-safe"'),
 "schemas": ({"key.converter.schemas.enable": "true", "value.converter.schemas.enable": "true", "time.precision.mode": "microseconds"}, 'schemas_key = true\nschemas_value = true\ntime_precision = "microseconds"'),
 "replaced": ({"time.precision.mode": "adaptive_time_microseconds", "message.key.columns": "public.users:email", "column.exclude.list": "public.users.secret,public.composite.a", "tombstones.on.delete": "false", "skipped.operations": "u"}, 'time_precision = "adaptive_time_microseconds"\nmessage_key = { "public.users" = ["email"] }\ncolumn_exclude = ["public.users.secret", "public.composite.a"]\ntombstones = false\nskipped_operations = ["u"]'),
 "plain": (dict(unwrap), 'format = "plain"'),
 "rewrite": (dict(unwrap, **{"transforms.unwrap.delete.tombstone.handling.mode": "rewrite", "transforms.unwrap.add.fields": "op,table,source.ts_ms,lsn"}), 'format = "plain"\ndelete_handling = "rewrite"\nadd_fields = ["op", "table", "source.ts_ms", "lsn"]'),
 "snapshot": ({"snapshot.mode": "initial"}, ""),
}
work = DBZ + '/run'; shutil.rmtree(work, ignore_errors=True); os.makedirs(work)
procs = []
def java(args, log, cp, mem='-Xmx512m'):
    f = open(f'{work}/{log}', 'w')
    p = subprocess.Popen(['java', mem, '-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC', '-cp', cp, f'-Dlog4j2.configurationFile={work}/log4j2.yaml'] + args, cwd=work, stdout=f, stderr=f); procs.append(p); return p
def wait(log, text, seconds=90):
    for _ in range(seconds * 10):
        if text in open(f'{work}/{log}').read(): return
        time.sleep(0.1)
    raise SystemExit(f'no "{text}" in {log}')
try:
    open(work + '/log4j2.yaml', 'w').write('Configuration:\n  Appenders: { Console: { name: OUT, PatternLayout: { pattern: "%d %p %c{1} %m%n" } } }\n  Loggers: { Root: { level: INFO, AppenderRef: [ { ref: OUT } ] } }\n')
    P, C, R, D = port(), port(), port(), port()
    open(work + '/server.properties', 'w').write(f'''process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{C}
listeners=PLAINTEXT://127.0.0.1:{P},CONTROLLER://127.0.0.1:{C}
advertised.listeners=PLAINTEXT://127.0.0.1:{P}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
message.max.bytes=20000000
''')
    cp = DBZ + '/libs/*'
    subprocess.run(['java', '-cp', cp, 'kafka.tools.StorageTool', 'format', '-t', 'AAAAAAAAAAAAAAAAAAAAAQ', '-c', 'server.properties'], cwd=work, check=True, capture_output=True)
    java(['kafka.Kafka', 'server.properties'], 'broker.log', cp)
    os.makedirs(work + '/pg'); subprocess.run(['chown', 'postgres', work + '/pg'])
    os.chmod(DBZ, 0o755)
    run = lambda *a: subprocess.run(['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups', 'env', f'LD_LIBRARY_PATH={PG}/lib', 'LC_ALL=C.UTF-8', *a], check=True, capture_output=True, cwd=work + '/pg')
    run(PG + '/bin/initdb', '-D', work + '/pg/d', '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C.UTF-8')
    pg = subprocess.Popen(['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups', 'env', f'LD_LIBRARY_PATH={PG}/lib', 'LC_ALL=C.UTF-8', PG + '/bin/postgres', '-D', work + '/pg/d', '-p', str(D), '-c', 'listen_addresses=127.0.0.1', '-c', f'unix_socket_directories={work}/pg', '-c', 'wal_level=logical', '-c', 'max_wal_senders=20', '-c', 'max_replication_slots=20'], stdout=open(work + '/pg.log', 'w'), stderr=subprocess.STDOUT)
    procs.append(pg); time.sleep(3)
    psql = lambda db, sql: subprocess.run(['psql', '-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', '127.0.0.1', '-p', str(D), '-U', 'postgres', db, '-c', sql], check=True, capture_output=True, text=True).stdout
    psql('postgres', 'create database cap')
    subprocess.run(['psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', '127.0.0.1', '-p', str(D), '-U', 'postgres', 'cap', '-f', HERE + '/setup.sql'], check=True)
    wait('broker.log', 'Kafka Server started')
    open(work + '/worker.properties', 'w').write(f'''bootstrap.servers=127.0.0.1:{P}
offset.storage.file.filename={work}/offsets
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
plugin.path={DBZ}/plugins
listeners=http://127.0.0.1:{R}
producer.max.request.size=20000000
''')
    files = []
    for name, (extra, toml) in sets.items():
        conf = dict(base, **{"name": name, "topic.prefix": name, "slot.name": "s_" + name, "database.port": str(D)}, **{})
        conf.update(extra)
        path = f'{work}/{name}.json'; json.dump({"name": name, "config": conf}, open(path, 'w')); files.append(path)
    java(['org.apache.kafka.connect.cli.ConnectStandalone', 'worker.properties'] + files, 'connect.log', cp, '-Xmx1500m')
    for _ in range(1500):
        n = int(psql('cap', "select count(*) from pg_replication_slots where active"))
        if n == len(sets): break
        time.sleep(0.2)
    else: raise SystemExit('connectors do not stream')
    time.sleep(3)
    # one line of work.sql is one transaction
    open(work + '/work.sql', 'w').write(open(HERE + '/work.sql').read())
    subprocess.run(['psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', '127.0.0.1', '-p', str(D), '-U', 'postgres', 'cap', '-f', work + '/work.sql'], check=True, stdout=subprocess.DEVNULL)
    time.sleep(20)
    dump = subprocess.run(["java", "-cp", DBZ + "/libs/*:" + HERE, "Dump", f"127.0.0.1:{P}"], check=True, stdout=subprocess.PIPE, text=True)
    lines = dump.stdout.splitlines()
    for name, (extra, toml) in sets.items():
        pipeline = 'initial_copy = ' + ('true' if name == 'snapshot' else 'false')
        if name == 'nanoseconds': pipeline += '\nexclude = ["public.fillers"]'
        about = {"about": "Debezium 3.7.0.Final connector-postgres, Kafka Connect 4.3.1 standalone, PostgreSQL 17.10, pgoutput; SQL in setup.sql and work.sql beside this file", "connector": extra, "walrelay": toml, "pipeline": pipeline}
        # Without the context headers, 170 bytes of each record.
        mine = [re.sub(r'\["__debezium\.context\.[A-Za-z]+","[^"]*"\],?', '', raw).replace(',]}', ']}') for raw in lines if json.loads(raw)['topic'].startswith(name + '.')]
        open(f'{HERE}/{name}.jsonl', 'w').write('\n'.join([json.dumps(about)] + mine) + '\n')
        print(name, len(mine))
finally:
    for p in procs[::-1]:
        p.terminate()
    for p in procs: 
        try: p.wait(20)
        except Exception: p.kill()
