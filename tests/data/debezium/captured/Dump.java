// Prints every record of every topic as one JSON line: topic, partition, key, value, headers; keys and values as their bytes are.
// Used by capture.py; compiled against kafka-clients 4.3.1.
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
public class Dump {
    static String q(String s) { StringBuilder o = new StringBuilder("\""); for (char c : s.toCharArray()) { if (c == '"' || c == '\\') o.append('\\').append(c); else if (c < 32) o.append(String.format("\\u%04x", (int) c)); else o.append(c);} return o.append('"').toString(); }
    static String j(byte[] b) { return b == null ? "null" : new String(b, StandardCharsets.UTF_8); }
    public static void main(String[] a) {
        Properties p = new Properties(); p.put("bootstrap.servers", a[0]); p.put("group.id", "dump"); p.put("enable.auto.commit", "false"); p.put("isolation.level", "read_committed");
        try (KafkaConsumer<byte[], byte[]> c = new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> parts = new ArrayList<>();
            for (Map.Entry<String, List<PartitionInfo>> e : new TreeMap<>(c.listTopics()).entrySet()) for (PartitionInfo i : e.getValue()) if (!e.getKey().startsWith("__")) parts.add(new TopicPartition(e.getKey(), i.partition()));
            Map<TopicPartition, Long> ends = c.endOffsets(parts);
            for (TopicPartition t : parts) { c.assign(List.of(t)); c.seekToBeginning(List.of(t)); while (c.position(t) < ends.get(t)) for (ConsumerRecord<byte[], byte[]> r : c.poll(Duration.ofMillis(500))) {
                StringBuilder h = new StringBuilder("[");
                for (Header x : r.headers()) { if (h.length() > 1) h.append(','); h.append('[').append(q(x.key())).append(',').append(q(j(x.value()))).append(']'); }
                System.out.println("{\"topic\":" + q(r.topic()) + ",\"partition\":" + r.partition() + ",\"key\":" + j(r.key()) + ",\"value\":" + j(r.value()) + ",\"headers\":" + h + "]}");
            } }
        }
    }
}
