// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// relay URL [CERTIFICATE]: a gateway before an upstream that is another process, with the gateway's
// own transport. The certificate is DER in base64. It says where it is.
func (c *memoryClient) relay(args []string) (string, error) {
	var err error
	o := &sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}}
	if c.keys, err = sealedchat.NewEphemeralKeyStore(o); err != nil {
		return "", err
	}
	config := sealedchat.GatewayConfig{Upstream: args[0] + "/v1", AllowUnauthenticated: true,
		Keys: c.keys}
	if len(args) > 1 {
		der, err := base64.StdEncoding.DecodeString(args[1])
		if err != nil {
			return "", err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return "", err
		}
		t := sealedchat.DefaultTransport()
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		t.TLSClientConfig.RootCAs.AddCert(cert)
		config.UpstreamTransport = t
	}
	if c.gateway, err = sealedchat.NewGateway(config); err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = http.Serve(listener, c.gateway) }()
	_, err = c.keys.Public(context.Background())
	return listener.Addr().String(), err
}

// mirrorAnswer is as long as the prompt, and nothing that is in it.
func mirrorAnswer(prompt string) string {
	random := make([]byte, len(prompt)/2)
	_, _ = mathrand.NewChaCha8(sha256.Sum256([]byte(prompt))).Read(random)
	return fmt.Sprintf("%x", random)
}

func mirrorUpstream(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Messages []struct{ Content string }
		Stream   bool
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Messages) != 1 {
		http.Error(w, "no prompt", http.StatusBadRequest)
		return
	}
	answer := mirrorAnswer(request.Messages[0].Content)
	if request.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		for len(answer) > 0 {
			n := min(len(answer), 5000)
			_, _ = fmt.Fprintf(w,
				`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%s"}}]}`+"\n\n", answer[:n])
			answer = answer[n:]
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w,
		`{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,`+
			`"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}]}`, answer)
}

// countedUpstream counts the connections of mirrorUpstream.
func countedUpstream(t *testing.T, secure bool) (server *httptest.Server, conns func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	server = httptest.NewUnstartedServer(http.HandlerFunc(mirrorUpstream))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			mu.Lock()
			n++
			mu.Unlock()
		}
	}
	if secure {
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// registersOnSignal is what a signal's frame can hold of content that went through vector
// registers: 128 bytes at a stretch. That is no copy; the runtime preempts goroutines by signals,
// and nobody clears the frames.
const registersOnSignal = 128

// promptSizes are in characters.
var promptSizes = []int{300, 100_000}

// TestPromptsInTheGatewaysMemory has a gateway serve requests over real connections, and looks in
// its memory, when it is idle, for what they said and what was answered.
func TestPromptsInTheGatewaysMemory(t *testing.T) {
	if underRace {
		t.Skip("what is measured is the ordinary build")
	}
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			up, conns := countedUpstream(t, scheme == "https")
			p := startMemoryProcess(t, "client")
			command := "relay " + up.URL
			if scheme == "https" {
				command += " " + base64.StdEncoding.EncodeToString(up.Certificate().Raw)
			}
			base := "http://" + p.tell(command)
			var all []testkit.MemorySecret
			requests := 0
			for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope,
				sealedchat.ProtocolOHTTP} {
				for _, stream := range []bool{false, true} {
					for _, size := range promptSizes {
						rounds := max(memoryScenario{}.rounds()*300/size, 2)
						all = append(all, askGateway(t, base, protocol, stream, size, rounds)...)
						requests += rounds
					}
				}
			}
			g := &gatewayMemory{memoryRun: &memoryRun{memoryProcess: p},
				search: testkit.NewSecretSearch(all)}
			idle := g.look("idle")
			saveHits(t, []*memoryCounts{idle})
			for _, h := range idle.scan.Hits {
				if h.Len > registersOnSignal {
					t.Errorf("found: %s", h)
				}
			}
			if n := conns(); n != 1 {
				t.Errorf("%d requests went over %d connections", requests, n)
			}
			// A scanner that finds nothing proves nothing.
			p.tell("plant heap", all[0].Bytes)
			if found := g.look("control").unlocked[all[0].Row]; found.full == 0 {
				t.Errorf("control: a copy that was left on purpose was not found")
			}
		})
	}
}

// askGateway makes requests, one after the other, and returns what memory is searched for.
func askGateway(
	t *testing.T, base string, protocol sealedchat.Protocol, stream bool, size, rounds int,
) (all []testkit.MemorySecret) {
	t.Helper()
	var keys *sealedchat.KeyStore // of protocol v1: without one, each client makes a key
	if protocol == sealedchat.ProtocolEnvelope {
		keys = storedKeys(t, "rsa-2048")
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: base, Trust: sealedchat.TrustHTTPS(), InsecureAllowHTTP: true, Protocol: protocol,
		Keys: keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range rounds {
		prompt := string(randomText(size))
		body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%s"}],"stream":%v}`,
			prompt, stream)
		resp, err := client.HTTPClient().Post(base+"/v1/chat/completions", "application/json",
			strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		answer := mirrorAnswer(prompt)
		if err != nil || resp.StatusCode != 200 ||
			!strings.Contains(string(got), answer[len(answer)-200:]) {
			t.Fatalf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
		}
		row := fmt.Sprintf("%v, %d characters, stream %v", protocol, size, stream)
		all = append(all,
			testkit.MemorySecret{Row: "prompt, " + row, Name: "prompt", Bytes: []byte(prompt)},
			testkit.MemorySecret{Row: "answer, " + row, Name: "answer", Bytes: []byte(answer)})
	}
	return all
}
