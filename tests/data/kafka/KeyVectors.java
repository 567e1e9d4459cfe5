// Writes keys.jsonl: keys as Kafka Connect's JsonConverter writes them for Debezium's schemas, and the partition of 6 that the Java
// client gives them. Run once: javac -cp 'libs/*' KeyVectors.java && java -cp 'libs/*:.' KeyVectors > keys.jsonl
// (libs: connect-json and kafka-clients 4.3.1 with what they need).
import java.math.BigDecimal;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.connect.data.Decimal;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.json.JsonConverter;

public class KeyVectors {
    static final int PARTITIONS = 6;

    static JsonConverter converter(boolean schemas) {
        JsonConverter converter = new JsonConverter();
        converter.configure(Map.of("schemas.enable", Boolean.toString(schemas)), true);
        return converter;
    }

    static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else out.append(c);
        }
        return out.append('"').toString();
    }

    // columns: SQL of the key's columns; values: SQL of one row; then name, schema, value of each field.
    static void key(String table, String columns, String values, Object... fields) {
        SchemaBuilder builder = SchemaBuilder.struct().name("shop.public." + table + ".Key");
        for (int at = 0; at < fields.length; at += 3) builder.field((String) fields[at], (Schema) fields[at + 1]);
        Struct struct = new Struct(builder.build());
        for (int at = 0; at < fields.length; at += 3) struct.put((String) fields[at], fields[at + 2]);
        StringBuilder line = new StringBuilder("{\"table\":" + quoted(table) + ",\"columns\":" + quoted(columns) + ",\"values\":" + quoted(values));
        for (boolean schemas : new boolean[] {false, true}) {
            byte[] bytes = converter(schemas).fromConnectData("shop.public." + table, struct.schema(), struct);
            int partition = Utils.toPositive(Utils.murmur2(bytes)) % PARTITIONS;
            String suffix = schemas ? "_with_schema" : "";
            line.append(",\"key" + suffix + "\":" + quoted(new String(bytes, StandardCharsets.UTF_8)));
            line.append(",\"partition" + suffix + "\":" + partition);
        }
        System.out.println(line.append('}'));
    }

    static Schema named(SchemaBuilder builder, String name) {
        return builder.name(name).version(1).build();
    }

    public static void main(String[] arguments) {
        for (int id : new int[] {0, 1, -1, 2147483647, 42, 1000}) {
            key("k_int", "id int", Integer.toString(id), "id", Schema.INT32_SCHEMA, id);
        }
        for (long id : new long[] {0, 9007199254740993L, -9223372036854775808L}) {
            key("k_bigint", "id bigint", "'" + id + "'", "id", Schema.INT64_SCHEMA, id);
        }
        key("k_smallint", "id smallint", "7", "id", Schema.INT16_SCHEMA, (short) 7);
        for (String text : new String[] {"é", "", "a/b", "quote\"d", "back\\slash", "tab\t", "\u2028", "\u007f", "😀", "\u0001", "日本"}) {
            String sql = "U&'" + escaped(text) + "'";
            key("k_text", "id text", sql, "id", Schema.STRING_SCHEMA, text);
        }
        key("k_uuid", "id uuid", "'123e4567-e89b-12d3-a456-426614174000'",
            "id", named(SchemaBuilder.string(), "io.debezium.data.Uuid"), "123e4567-e89b-12d3-a456-426614174000");
        for (String number : new String[] {"1.29", "-0.01", "12345678.90", "0.00"}) {
            Schema schema = Decimal.builder(2).parameter("connect.decimal.precision", "10").build();
            key("k_numeric", "id numeric(10,2)", number, "id", schema, new BigDecimal(number));
        }
        for (String number : new String[] {"1.5", "123", "-12345678901234567890.123456789"}) {
            Schema schema = SchemaBuilder.struct().name("io.debezium.data.VariableScaleDecimal").version(1).doc("Variable scaled decimal")
                .field("scale", Schema.INT32_SCHEMA).field("value", Schema.BYTES_SCHEMA).build();
            BigDecimal decimal = new BigDecimal(number);
            Struct value = new Struct(schema).put("scale", decimal.scale()).put("value", decimal.unscaledValue().toByteArray());
            key("k_numeric_free", "id numeric", number, "id", schema, value);
        }
        for (double number : new double[] {1e10, 1.5, -0.0, 100, 1e-5, 123456789.125, 1e7, 9999999, 0.001, 1.7976931348623157e308, 4.9e-324}) {
            key("k_float8", "id float8", "'" + number + "'", "id", Schema.FLOAT64_SCHEMA, number);
        }
        for (float number : new float[] {1e10f, 0.1f, 16777216f, 3.4028235e38f}) {
            key("k_float4", "id float4", "'" + number + "'", "id", Schema.FLOAT32_SCHEMA, number);
        }
        key("k_boolean", "id boolean", "true", "id", Schema.BOOLEAN_SCHEMA, true);
        key("k_date", "id date", "'2024-02-29'", "id", named(SchemaBuilder.int32(), "io.debezium.time.Date"), 19782);
        key("k_timestamp", "id timestamp", "'2024-02-29 13:14:15.123456'",
            "id", named(SchemaBuilder.int64(), "io.debezium.time.MicroTimestamp"), 1709212455123456L);
        key("k_timestamptz", "id timestamptz", "'2024-02-29 13:14:15.123456+02'",
            "id", named(SchemaBuilder.string(), "io.debezium.time.ZonedTimestamp"), "2024-02-29T11:14:15.123456Z");
        key("k_bytea", "id bytea", "'\\xdeadbeef'", "id", Schema.BYTES_SCHEMA,
            ByteBuffer.wrap(new byte[] {(byte) 0xde, (byte) 0xad, (byte) 0xbe, (byte) 0xef}));
        for (int n = 1; n <= 4; n++) {
            key("k_composite", "region text, id int", "'eu', " + n, "region", Schema.STRING_SCHEMA, "eu", "id", Schema.INT32_SCHEMA, n);
        }
    }

    // The text of U&'…'.
    static String escaped(String text) {
        StringBuilder out = new StringBuilder();
        text.codePoints().forEach(c -> {
            if (c < 0x20 || c > 0x7e) out.append(String.format("\\+%06X", c));
            else if (c == '\\' || c == '\'') out.append((char) c).append((char) c);
            else out.append((char) c);
        });
        return out.toString();
    }
}
