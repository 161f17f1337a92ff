// The yardstick of another language's own server: Go's net/http, which ends by Shutdown.
//
// usage: net-http ADDRESS FILES UPSTREAM ROUTES [SECURE CHAIN KEY]
//
// It answers "/" and as many routes more as it is told, the files of a folder below "/files/", and, below "/proxied/",
// what the upstream answers; at the address SECURE it does so over TLS. It says when it is ready.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

//go:embed hello.html
var body []byte

func answer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(body)
}

func main() {
	if len(os.Args) != 5 && len(os.Args) != 8 {
		log.Fatal("usage: net-http ADDRESS FILES UPSTREAM ROUTES [SECURE CHAIN KEY]")
	}
	routes, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	// As http.DefaultTransport, with room for every connection of the load.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 8192
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: os.Args[3]})
	proxy.Transport = transport

	mux := http.NewServeMux()
	mux.HandleFunc("/", answer)
	for n := 0; n < routes; n++ {
		mux.HandleFunc(fmt.Sprintf("/route/%05d", n), answer)
	}
	mux.Handle("/files/", http.StripPrefix("/files/", http.FileServer(http.Dir(os.Args[2]))))
	mux.Handle("/proxied/", proxy)

	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	stopping := make(chan os.Signal, 1)
	signal.Notify(stopping, syscall.SIGTERM)
	stopped := make(chan error)
	server := http.Server{Handler: mux}
	go func() {
		<-stopping
		stopped <- server.Shutdown(context.Background())
	}()
	if len(os.Args) == 8 {
		secure, err := net.Listen("tcp", os.Args[5])
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			if err := server.ServeTLS(secure, os.Args[6], os.Args[7]); !errors.Is(err, http.ErrServerClosed) {
				log.Fatal(err)
			}
		}()
	}
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		if manager, err := net.Dial("unixgram", socket); err == nil {
			manager.Write([]byte("READY=1"))
			manager.Close()
		}
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-stopped; err != nil {
		log.Fatal(err)
	}
}
