// Go's `net/http`: `client PORT AUTHORITY` keeps one connection of HTTP/1.1, and its protocol is in ../program.rs.
// `client PORT AUTHORITY N` has N requests of HTTP/2 on their way at a time until standard input ends, on as many
// connections as the server makes it open, and prints how many were answered, and on how many connections.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	authority, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	url := "https://localhost:" + os.Args[1]
	if len(os.Args) > 3 {
		transport.ForceAttemptHTTP2 = true
		many(client, url, os.Args[3])
	} else {
		transport.MaxConnsPerHost = 1
		one(client, url)
	}
}

// ask returns an answer whose body was read, and the connection that it came on.
func ask(client *http.Client, url string) (*http.Response, net.Conn) {
	var on net.Conn
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { on = got.Conn }}
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		log.Fatal(err)
	}
	answer, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		log.Fatal(err)
	}
	return answer, on
}

var versions = map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}

func one(client *http.Client, url string) {
	var kept net.Conn
	paths := bufio.NewScanner(os.Stdin)
	for paths.Scan() {
		answer, on := ask(client, url+paths.Text())
		if kept == nil {
			kept = on
		}
		if on != kept || answer.ProtoMajor != 1 {
			log.Fatal("the transport has opened another connection, or speaks ", answer.Proto)
		}
		fmt.Println(answer.StatusCode, on.LocalAddr().(*net.TCPAddr).Port, versions[answer.TLS.Version])
	}
}

func many(client *http.Client, url, number string) {
	askers, err := strconv.Atoi(number)
	if err != nil {
		log.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	var lock sync.Mutex
	var answered int
	connections := map[net.Conn]bool{}
	var group sync.WaitGroup
	for n := 0; n < askers; n++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				answer, on := ask(client, url+"/")
				if answer.StatusCode != 200 || answer.ProtoMajor != 2 {
					log.Fatal("the answer was ", answer.Status, " over ", answer.Proto)
				}
				lock.Lock()
				answered++
				connections[on] = true
				if answered%200 == 0 {
					fmt.Println(answered, len(connections))
				}
				lock.Unlock()
				select {
				case <-over:
					return
				default:
				}
			}
		}()
	}
	group.Wait()
	fmt.Println(answered, len(connections))
}
