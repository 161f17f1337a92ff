// Java's own TLS, which renews its keys all the time: `Client.java PORT AUTHORITY`. The protocol is in ../program.rs.

import java.io.*;
import java.nio.file.*;
import java.security.*;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

class Client {
    public static void main(String[] arguments) throws Exception {
        // A KeyUpdate after so many bytes: several in each request and answer.
        Security.setProperty("jdk.tls.keyLimits", "AES/GCM/NoPadding KeyUpdate 64, ChaCha20-Poly1305 KeyUpdate 64");
        var trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null);
        var authority = new ByteArrayInputStream(Files.readAllBytes(Path.of(arguments[1])));
        trusted.setCertificateEntry("authority", CertificateFactory.getInstance("X.509").generateCertificate(authority));
        var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(trusted);
        var context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);

        var socket = (SSLSocket) context.getSocketFactory().createSocket("localhost", Integer.parseInt(arguments[0]));
        socket.setSoTimeout(60_000);
        var parameters = socket.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        socket.setSSLParameters(parameters);
        var requests = new BufferedReader(new InputStreamReader(System.in));
        for (String path; (path = requests.readLine()) != null; ) {
            socket.getOutputStream().write(("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n").getBytes());
            System.out.println(status(socket.getInputStream()) + " " + socket.getLocalPort() + " " + socket.getSession().getProtocol());
        }
    }

    /** Reads a whole answer, and no byte more: what comes after it is nobody's. */
    static String status(InputStream stream) throws IOException {
        String first = line(stream);
        int length = 0;
        for (String field; !(field = line(stream)).isEmpty(); )
            if (field.toLowerCase().startsWith("content-length:")) length = Integer.parseInt(field.substring(15).trim());
        if (stream.readNBytes(length).length < length) throw new EOFException("the answer was cut");
        return first.split(" ")[1];
    }

    static String line(InputStream stream) throws IOException {
        var line = new StringBuilder();
        for (int next; (next = stream.read()) != '\n'; line.append((char) next))
            if (next < 0) throw new EOFException("the connection was closed");
        return line.toString().trim();
    }
}
