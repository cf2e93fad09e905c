// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// The requests that SDKs make carry a GetBody with the prompt in the clear, and net/http sends a
// request again from there in more cases than one. These tests make each of them happen, first with
// a transport that replaces the body and forgets GetBody: there the prompt is seen on the wire, so
// that it would be seen here too.

// forgetful seals the body of every POST, as a drop-in transport written in a hurry would.
type forgetful struct {
	next   http.RoundTripper
	url    string
	server *sealedchat.PublicKey
}

func (f *forgetful) RoundTrip(req *http.Request) (*http.Response, error) {
	plaintext, _ := io.ReadAll(req.Body)
	e, err := sealTo(f.server, plaintext)
	if err != nil {
		return nil, err
	}
	sealed := envelope.Append(nil, e)
	out := req.Clone(req.Context())
	out.URL, _ = out.URL.Parse(f.url + hybrid.PathCompletion)
	out.Host, out.Body, out.ContentLength = "", io.NopCloser(bytes.NewReader(sealed)),
		int64(len(sealed))
	// as long, or else a check of net/http's saves it over HTTP/1.1
	out.GetBody = func() (io.ReadCloser, error) {
		padded := append(bytes.Clone(plaintext), bytes.Repeat([]byte(" "),
			len(sealed)-len(plaintext))...)
		return io.NopCloser(bytes.NewReader(padded)), nil
	}
	return f.next.RoundTrip(out)
}

// hostileTransport is a Config.Transport that does everything with a request that net/http might.
type hostileTransport struct {
	*peer
	saw bytes.Buffer
}

func (h *hostileTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.GetBody != nil {
		for range 3 {
			again, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			_, _ = io.Copy(&h.saw, again)
		}
	}
	_ = req.Header.Write(&h.saw)
	h.saw.WriteString(req.URL.String() + req.Host)
	resp, err := h.peer.RoundTrip(req)
	if req.GetBody != nil {
		again, _ := req.GetBody() // after the answer, too
		_, _ = io.Copy(&h.saw, again)
	}
	return resp, err
}

func TestHTTPClientGetBodyIsCiphertext(t *testing.T) {
	h := &hostileTransport{peer: newPeer(t)}
	client := peerClient(t, h, nil).HTTPClient()
	for range 2 {
		req, _ := sdkRequest(t, sdkBody(`,"user":"`+sdkPrompt+`"`))
		req.Header.Set("X-Prompt", sdkPrompt)
		req.URL.RawQuery = sdkPrompt
		if _, _, err := sdkTrip(t, client.Transport, req); err != nil {
			t.Fatal(err)
		}
	}
	if saw := h.saw.String(); strings.Contains(saw, sdkPrompt) ||
		strings.Contains(saw, sdkAnswer) || !strings.Contains(saw, "X-Payload-Id") {
		t.Errorf("a transport can see: %s", saw)
	}
	if posts := h.sent(); len(posts) != 2 || strings.Count(h.saw.String(), posts[1].body) != 4 {
		t.Errorf("GetBody does not give what was sent, %d posts", len(posts))
	}
}

// h2Server speaks HTTP/2 frames by hand, enough of them to refuse a POST after having read it: each
// POST is told to refuse, until that reports false; then it is answered.
type h2Server struct {
	url       string
	transport *http.Transport
	key       []byte              // answers streams without a body
	answer    func() []byte       // answers the others
	refuse    func(post int) byte // 'r': RST_STREAM, 'g': GOAWAY, 0: answer

	mu     sync.Mutex
	bodies [][]byte // of the POSTs, in the order of their ends
}

func newH2Server(t *testing.T) *h2Server {
	t.Helper()
	cert := testkit.TLSServer(t, http.NotFoundHandler()) // for its certificate
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: cert.TLS.Certificates,
		NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &h2Server{url: "https://" + ln.Addr().String(), transport: testkit.ClientTransport(cert)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				s.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		s.transport.CloseIdleConnections()
		ln.Close()
		wg.Wait()
	})
	return s
}

// RFC 9113, sections 6 and 7.
const (
	h2Data, h2Headers, h2ResetStream, h2Settings, h2GoAway = 0x0, 0x1, 0x3, 0x4, 0x7
	h2Ack, h2EndStream, h2EndHeaders, h2RefusedStream      = 0x1, 0x1, 0x4, 0x7
)

func h2Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	f := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(f, stream), payload...)
}

func (s *h2Server) serve(conn net.Conn) {
	var preface [24]byte
	if _, err := io.ReadFull(conn, preface[:]); err != nil {
		return
	}
	_, _ = conn.Write(h2Frame(h2Settings, 0, 0, nil))
	posts := make(map[uint32][]byte)
	respond := func(stream uint32, body []byte) {
		// :status 200, RFC 7541 appendix A
		out := h2Frame(h2Headers, h2EndHeaders, stream, []byte{0x88})
		_, _ = conn.Write(append(out, h2Frame(h2Data, h2EndStream, stream, body)...))
	}
	for {
		var head [9]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(conn, payload); err != nil {
			return
		}
		kind, flags, stream := head[3], head[4], binary.BigEndian.Uint32(head[5:])
		switch {
		case kind == h2Settings && flags&h2Ack == 0:
			_, _ = conn.Write(h2Frame(h2Settings, h2Ack, 0, nil))
		case kind == h2Headers && flags&h2EndStream != 0:
			respond(stream, s.key)
		case kind == h2Data:
			posts[stream] = append(posts[stream], payload...)
			if flags&h2EndStream == 0 {
				continue
			}
			s.mu.Lock()
			n := len(s.bodies)
			s.bodies = append(s.bodies, posts[stream])
			s.mu.Unlock()
			switch s.refuse(n) {
			case 'r':
				_, _ = conn.Write(h2Frame(h2ResetStream, 0, stream,
					[]byte{0, 0, 0, h2RefusedStream}))
			case 'g': // nothing above the stream before was worked on
				last := binary.BigEndian.AppendUint32(nil, stream-1)
				_, _ = conn.Write(h2Frame(h2GoAway, 0, 0, append(last, 0, 0, 0, 0)))
			default:
				respond(stream, s.answer())
			}
		}
	}
}

func TestHTTPClientRefusedStream(t *testing.T) {
	server, err := hybrid.NewPrivateKey(storedKey(t, "rsa-2048"))
	if err != nil {
		t.Fatal(err)
	}
	clientKey := publicOf(t, "rsa-2048")
	for name, refusal := range map[string]byte{"RST_STREAM": 'r', "GOAWAY": 'g'} {
		for _, naive := range []bool{true, false} {
			s := newH2Server(t)
			s.key = server.Public().PEM()
			s.answer = func() []byte {
				e, _ := sealTo(clientKey, []byte(testkit.CompletionJSON(sdkAnswer, "")))
				return envelope.Append(nil, e)
			}
			s.refuse = func(post int) byte {
				if post == 0 {
					return refusal
				}
				return 0
			}
			client := startClient(t, s.url, func(c *sealedchat.Config) {
				c.Transport, c.Keys = s.transport, storedKeys(t, "rsa-2048")
			}).HTTPClient()
			if naive {
				client.Transport = &forgetful{next: s.transport, url: s.url,
					server: publicOf(t, "rsa-2048")}
			}
			req, _ := sdkRequest(t, sdkBody(""))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			s.mu.Lock()
			bodies := s.bodies
			s.mu.Unlock()
			if len(bodies) != 2 {
				t.Fatalf("%s: %d streams with a body: net/http did not send again", name,
					len(bodies))
			}
			seen := bytes.Contains(bytes.Join(bodies, nil), []byte(sdkPrompt))
			if seen != naive {
				t.Errorf("%s, naive %v: the prompt on the wire: %v", name, naive, seen)
			}
			if naive {
				continue
			}
			if resp.StatusCode != 200 || !bytes.Contains(body, []byte(sdkAnswer)) {
				t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			}
			for _, b := range bodies {
				e, err := envelope.Parse(b, 1<<20)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if plain, err := server.Open(&e, nil); err != nil || string(plain) != sdkBody("") {
					t.Errorf("%s: %v, %s", name, err, plain)
				}
			}
		}
	}
}

// sdkGateway is a gateway behind plain HTTP and a witness. front, if set, may answer in its stead.
func sdkGateway(t *testing.T, front func(w http.ResponseWriter,
	r *http.Request) bool) *testkit.Witness {
	t.Helper()
	g := startGateway(t, testkit.AnswerText(sdkAnswer), func(c *sealedchat.GatewayConfig) {
		c.Keys = storedKeys(t, "rsa-2048")
	})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if front == nil || !front(w, r) {
			g.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return testkit.NewWitness(t, srv.Listener.Addr().String())
}

// staleConn is a connection that turns out to be dead when the nth write is tried: nothing of it is
// written.
type staleConn struct {
	net.Conn
	left int
}

func (c *staleConn) Write(b []byte) (int, error) {
	if c.left--; c.left < 0 {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func TestHTTPClientStaleConnection(t *testing.T) {
	for _, naive := range []bool{true, false} {
		w := sdkGateway(t, nil)
		dials := 0
		transport := &http.Transport{DialContext: func(ctx context.Context, network,
			addr string) (net.Conn, error) {
			conn, err := httpx.NewDialer().DialContext(ctx, network, addr)
			if dials++; dials == 1 && err == nil {
				return &staleConn{Conn: conn, left: 1}, nil // lives for the key fetch
			}
			return conn, err
		}}
		t.Cleanup(transport.CloseIdleConnections)
		url := "http://" + w.Addr()
		client := startClient(t, url, func(c *sealedchat.Config) {
			c.Transport, c.Keys = transport, storedKeys(t, "rsa-2048")
		}).HTTPClient()
		if naive {
			client.Transport = &forgetful{next: transport, url: url,
				server: publicOf(t, "rsa-2048")}
			resp, err := (&http.Client{Transport: transport}).Get(url + hybrid.PathPublicKey)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		req, _ := sdkRequest(t, sdkBody(""))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if dials != 2 {
			t.Errorf("%d connections: net/http did not send again", dials)
		}
		if naive {
			w.MustSee(sdkPrompt)
			continue
		}
		if resp.StatusCode != 200 || !bytes.Contains(body, []byte(sdkAnswer)) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		w.MustNotSee(sdkPrompt, sdkAnswer)
	}
}

// A server that gives up an idle connection while a request is on its way closes it without an
// answer.
func TestHTTPClientConnectionClosedByTheServer(t *testing.T) {
	var mu sync.Mutex
	posts := make(map[string]int) // by payload id
	w := sdkGateway(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		posts[r.Header.Get(hybrid.HeaderPayloadID)]++
		if len(posts) > 2 {
			return false
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
		return true
	})
	c := startClient(t, "http://"+w.Addr(), func(c *sealedchat.Config) {
		c.MaxRetries, c.Keys = 2, storedKeys(t, "rsa-2048")
	})
	req, _ := sdkRequest(t, sdkBody(`,"stream":true`))
	resp, body, err := sdkTrip(t, c.HTTPClient().Transport, req)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(body, sdkAnswer) {
		t.Fatalf("%v, %v", resp, err)
	}
	if len(posts) != 3 { // and not the same one again
		t.Errorf("payload ids: %v", posts)
	}
	w.MustNotSee(sdkPrompt, sdkAnswer)
}

func TestHTTPClientRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, keyFetch := range []bool{false, true} {
			elsewhere, hits := "", 0
			w := sdkGateway(t, func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/elsewhere") {
					hits++
					return true
				}
				if (r.Method == http.MethodGet) != keyFetch {
					return false
				}
				http.Redirect(w, r, elsewhere, status)
				return true
			})
			elsewhere = "http://" + w.Addr() + "/elsewhere/v1/chat/completions"
			client := startClient(t, "http://"+w.Addr(), func(c *sealedchat.Config) {
				c.MaxRetries, c.Keys, c.APIKey = 3, storedKeys(t, "rsa-2048"),
					secret(t, "KEY-MARKER-90aa31")
			}).HTTPClient()
			req, _ := sdkRequest(t, sdkBody(""))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			openAIError(t, resp, string(body))
			if resp.StatusCode != 502 || resp.Header.Get("Location") != "" || hits != 0 {
				t.Errorf("%d: %d %s, %d hits elsewhere", status, resp.StatusCode, body, hits)
			}
			w.MustNotSee(sdkPrompt, sdkAnswer)
			if keyFetch {
				w.MustNotSee("KEY-MARKER-90aa31")
			}
		}
	}
}

// sdkLoop is what an SDK does: the same body again from GetBody, counted, unless a response says
// no.
func sdkLoop(t *testing.T, client *http.Client, attempts int, obey bool) (resp *http.Response,
	err error) {
	t.Helper()
	first, _ := sdkRequest(t, sdkBody(""))
	for count := range attempts {
		req := first.Clone(t.Context())
		req.Body, _ = first.GetBody()
		req.Header.Set("X-Stainless-Retry-Count", strconv.Itoa(count))
		if resp, err = client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 || obey && resp.Header.Get("X-Should-Retry") == "false" {
				break
			}
		}
	}
	return resp, err
}

func TestHTTPClientUnderAnSDKsOwnRetries(t *testing.T) {
	for name, c := range map[string]struct {
		front func(w http.ResponseWriter) bool
		obey  bool
		posts int
		check func(resp *http.Response, err error) bool
	}{
		"an obedient SDK and an error": {func(w http.ResponseWriter) bool {
			w.WriteHeader(500)
			return true
		}, true, 1,
			func(resp *http.Response, err error) bool {
				return err == nil && resp.StatusCode == 500
			}},
		"a stubborn SDK and an error": {func(w http.ResponseWriter) bool {
			w.WriteHeader(500)
			return true
		}, false, 3,
			func(resp *http.Response, err error) bool {
				return err == nil && resp.StatusCode == 500
			}},
		"an answer that is cut": {func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"version"`)
			return true
		}, true, 1, func(_ *http.Response, err error) bool {
			return errors.Is(err, sealedchat.ErrConnection)
		}},
		"an answer in plaintext": {func(w http.ResponseWriter) bool {
			_, _ = io.WriteString(w, `{"choices":[]}`)
			return true
		}, true, 1,
			func(_ *http.Response, err error) bool {
				return errors.Is(err, sealedchat.ErrEnvelope)
			}},
		"a good answer": {func(http.ResponseWriter) bool { return false }, true, 1,
			func(resp *http.Response, err error) bool {
				return err == nil && resp.StatusCode == 200
			}},
	} {
		posts := 0
		w := sdkGateway(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			posts++
			return c.front(w)
		})
		client := startClient(t, "http://"+w.Addr(), func(c *sealedchat.Config) {
			c.Keys = storedKeys(t, "rsa-2048")
		}).HTTPClient()
		resp, err := sdkLoop(t, client, 3, c.obey)
		if !c.check(resp, err) || posts != c.posts {
			t.Errorf("%s: %v, %v, %d posts", name, resp, err, posts)
		}
		w.MustNotSee(sdkPrompt, sdkAnswer)
	}
}
