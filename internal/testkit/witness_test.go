// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// wire sends pieces, one write each, through a new witness to a server that answers "HTTP/1.1
// 200\r\n\r\n" and reply.
func wire(t testing.TB, reply string, pieces ...string) *Witness {
	t.Helper()
	target := listenTCP(t)
	target.serve(func(conn net.Conn) {
		io.Copy(io.Discard, conn)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"+reply)
	})
	w := NewWitness(t, target.Addr())
	conn, err := net.Dial("tcp", w.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	for _, piece := range pieces {
		if _, err := io.WriteString(conn, piece); err != nil {
			t.Fatal(err)
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || !bytes.HasSuffix(got, []byte(reply)) {
		t.Fatalf("the answer came as %q, %v", got, err)
	}
	return w
}

const post = "POST / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestWitnessFindsEveryForm(t *testing.T) {
	NoLeaks(t)
	for form, text := range planted(t) {
		for name, pieces := range map[string][]string{
			"one write":    {post, text},
			"byte by byte": append([]string{post}, strings.Split(text, "")...),
			"chunks of 1":  {chunked(text, 1)},
			"chunks of 5":  {chunked(text, 5)},
			"after a message": {"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody" +
				chunked("", 1) + chunked(text, 3)},
			"cut chunk": {strings.TrimSuffix(chunked(text+"xyz", (len(text)+4)/2),
				"z\r\n0\r\n\r\n")},
		} {
			w := wire(t, "nothing", pieces...)
			hits := w.Find(marker)
			if len(hits) == 0 {
				t.Errorf("%s, %s: not found in %q", form, name, text)
			}
			for _, hit := range hits {
				if hit.Conn != 0 || !hit.FromClient {
					t.Errorf("%s, %s: found %s", form, name, hit)
				}
			}
			if other := w.Find("another marker"); len(other) > 0 {
				t.Errorf("%s, %s: found what was not sent: %s", form, name, other)
			}
		}
		if hits := wire(t, text, post).Find(marker); len(hits) == 0 || hits[0].FromClient {
			t.Errorf("%s in the answer: %v", form, hits)
		}
	}
}

func TestWitnessIsNotFooled(t *testing.T) {
	half := len(marker) / 2
	for name, text := range map[string]string{
		"nothing":           "",
		"other case":        strings.ToUpper(marker),
		"all but the last":  marker[:len(marker)-1],
		"all but the first": marker[1:],
		"halves apart":      marker[:half] + "-" + marker[half:],
		"halves swapped":    marker[half:] + marker[:half],
		"reversed":          reverse(marker),
		"base64 of a part": encodings["base64"](marker[1:]) + "|" +
			encodings["base64"](marker[:len(marker)-1]),
		"cut base64": strings.TrimRight(encodings["base64"](marker), "=")[:len(marker)*8/6-1],
		"base64, halves": encodings["base64"](marker[:half]) + "!" +
			encodings["base64"](marker[half:]),
		"broken percent":    strings.ReplaceAll(encodings["percent"](marker), "%", "%%"),
		"percent without %": strings.ReplaceAll(encodings["percent"](marker), "%", "="),
		"wrong JSON escape": strings.ReplaceAll(encodings["JSON"](marker), `\u`, `\v`),
		"short JSON escape": strings.ReplaceAll(encodings["JSON"](marker), `\u00`, `\u0`),
		"cut hex":           encodings["hex"](marker)[2:],
		"chunk sizes kept": strings.ReplaceAll(chunked(marker, 5)[len(chunkedHeader):], "\r\n",
			"."),
		"chunks, not chunked": strings.Replace(chunked(marker, 5), "Transfer-Encoding: chunked",
			"Transfer-Encoding: none", 1),
	} {
		w := wire(t, "nothing", post, text)
		if hits := w.Find(marker); len(hits) > 0 {
			t.Errorf("%s: %q was taken for the marker: %s", name, text, hits)
		}
		mustPass(t, func(tb testing.TB) { w.t = tb; w.MustNotSee(marker) })
	}
	// Half in one connection or direction and half in another is no marker.
	if hits := wire(t, marker[half:], post, marker[:half]).Find(marker); len(hits) > 0 {
		t.Errorf("found across directions: %s", hits)
	}
}

func TestWitnessVerdicts(t *testing.T) {
	w := wire(t, "the answer-marker", post, "the request-marker")
	mustPass(t, func(tb testing.TB) { w.t = tb; w.MustSee("request-marker", "answer-marker") })
	mustPass(t, func(tb testing.TB) {
		w.t = tb
		w.MustNotSee("something else", "yet something else")
	})
	mustFail(t, `"request-marker" is on the wire: connection 0, from the client, plain`,
		func(tb testing.TB) {
			w.t = tb
			w.MustNotSee("something else", "request-marker")
		})
	mustFail(t, `"answer-marker" is on the wire: connection 0, from the server, plain`,
		func(tb testing.TB) {
			w.t = tb
			w.MustNotSee("answer-marker", "something else")
		})
	mustFail(t, `"something else" is not on the wire`, func(tb testing.TB) {
		w.t = tb
		w.MustSee("request-marker", "something else")
	})
	mustFail(t, "shorter than 8", func(tb testing.TB) {
		w.t = tb
		w.MustNotSee("something else", "7 bytes")
	})
	mustFail(t, "shorter than 8", func(tb testing.TB) { w.t = tb; w.Find("7 bytes") })
	mustFail(t, "shorter than 8", func(tb testing.TB) { w.t = tb; w.MustSee("") })
	mustFail(t, "no marker", func(tb testing.TB) { w.t = tb; w.MustNotSee() })
	if got := string(w.Bytes()); got != post+"the request-markerHTTP/1.1 200 OK\r\n\r\nthe "+
		"answer-marker" {
		t.Errorf("recorded %q", got)
	}
}

func TestWitnessCannotTell(t *testing.T) {
	mustFail(t, "recorded no HTTP", func(tb testing.TB) {
		NewWitness(tb, "127.0.0.1:9").MustNotSee(marker)
	})

	// Bytes that passed through as TLS.
	mustFail(t, "recorded no HTTP", func(tb testing.TB) {
		srv := TLSServer(tb, http.NotFoundHandler())
		w := NewWitness(tb, srv.Listener.Addr().String())
		transport := ClientTransport(srv)
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" +
			w.Addr())
		if err != nil {
			t.Error(err)
			return
		}
		res.Body.Close()
		w.MustNotSee(marker)
	})

	// More than it keeps.
	mustFail(t, "lost the bytes after", func(tb testing.TB) {
		target := listenTCP(tb)
		target.serve(func(conn net.Conn) { io.Copy(conn, conn) })
		w := NewWitness(tb, target.Addr())
		w.mu.Lock()
		w.limit = 100
		w.mu.Unlock()
		conn, err := net.Dial("tcp", w.Addr())
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		for range 3 { // an echo of each: 60, then 120 bytes
			if _, err := io.WriteString(conn, post); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, len(post))); err != nil {
				t.Errorf("the witness did not pass on what it could not keep: %v", err)
			}
		}
		w.MustNotSee(marker)
	})
}

func TestWitnessIsTransparent(t *testing.T) {
	NoLeaks(t)
	big := strings.Repeat("0123456789abcdef", 1<<12)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s%s", marker, body) // too long for a Content-Length: chunked
	}))
	defer srv.Close()
	w := NewWitness(t, srv.Listener.Addr().String())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	for range 2 {
		res, err := client.Post("http://"+w.Addr(), "text/plain", strings.NewReader(big))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(body) != marker+big {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
	}
	if got := w.snapshot(); len(got) != 2 {
		t.Errorf("%d streams, want the 2 of a connection that was used again", len(got))
	}
	hits := w.Find(marker)
	if len(hits) == 0 || slices.ContainsFunc(hits, func(h Hit) bool { return h.FromClient }) {
		t.Errorf("hits %v", hits)
	}

	// A target that is not there is a closed connection, not a hang.
	gone := NewWitness(t, "127.0.0.1:9")
	if res, err := client.Get("http://" + gone.Addr()); err == nil {
		res.Body.Close()
		t.Error("an answer from nowhere")
	}
}
