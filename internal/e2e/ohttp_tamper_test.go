// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// openTampered has a client open what change makes of a fresh exchange's answer, in one piece and
// as a stream. It returns both errors, and the text that came before the stream's.
func openTampered(t *testing.T, g *fakes.Gateway, client *sealedchat.SecureCompletionClient,
	change func([]byte) []byte) (text string, whole, streamed error) {
	t.Helper()
	g.Set(func() { g.Mangle = change })
	_, whole = client.Chat(t.Context(), ask("x"))
	for chunk, err := range client.Stream(t.Context(), ask("x")) {
		if err != nil {
			streamed = err
			break
		}
		text += chunk.Text()
	}
	return text, whole, streamed
}

func TestEveryTruncationIsRefused(t *testing.T) {
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	client := directClient(t, g, nil)
	longest := 0
	text, whole, streamed := openTampered(t, g, client, func(b []byte) []byte {
		longest = max(longest, len(b))
		return b
	})
	if whole != nil || streamed != nil || text != "Paris" {
		t.Fatalf("untouched: %v, %v, %q", whole, streamed, text)
	}
	if longest < 200 {
		t.Fatalf("the answer has only %d bytes", longest)
	}
	for n := range longest {
		text, whole, streamed := openTampered(t, g, client, func(b []byte) []byte {
			return b[:min(n, len(b)-1)]
		})
		for name, err := range map[string]error{"whole": whole, "streamed": streamed} {
			if !errors.Is(err, sealedchat.ErrTruncated) &&
				!errors.Is(err, sealedchat.ErrDecryption) {
				t.Errorf("cut to %d bytes, %s: %v", n, name, err)
			}
			if errors.Is(err, sealedchat.ErrTruncated) &&
				!errors.Is(err, sealedchat.ErrConnection) {
				t.Errorf("cut to %d bytes, %s: no ErrConnection", n, name)
			}
		}
		if !strings.HasPrefix("Paris", text) {
			t.Errorf("cut to %d bytes: %q came", n, text)
		}
	}
}

func TestEveryBitFlipIsRefused(t *testing.T) {
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	client := directClient(t, g, nil)
	longest := 0
	openTampered(t, g, client, func(b []byte) []byte {
		longest = max(longest, len(b))
		return b
	})
	for i := range longest * 8 {
		if !testkit.Long() && i%8 != i/8%8 { // one bit of each byte, another one each time
			continue
		}
		text, whole, streamed := openTampered(t, g, client, func(b []byte) []byte {
			if i/8 < len(b) {
				b[i/8] ^= 1 << (i % 8)
			} else {
				b[len(b)-1] ^= 1 << (i % 8)
			}
			return b
		})
		if whole == nil || streamed == nil || !strings.HasPrefix("Paris", text) {
			t.Errorf("bit %d of byte %d: %v, %v, %q", i%8, i/8, whole, streamed, text)
		}
	}
}

func TestSwappedAndMovedAnswersAreRefused(t *testing.T) {
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	client := directClient(t, g, nil)
	var before []byte
	keep := func(b []byte) []byte {
		before = bytes.Clone(b)
		return b
	}
	for name, change := range map[string]func([]byte) []byte{
		"another exchange's": func([]byte) []byte { return before },
		"twice":              func(b []byte) []byte { return append(bytes.Clone(b), b...) },
		"with more behind":   func(b []byte) []byte { return append(b, 0) },
		"empty":              func([]byte) []byte { return nil },
		"only the nonce":     func(b []byte) []byte { return b[:32] },
		"chunks exchanged": func(b []byte) []byte {
			return rearrange(t, b, func(c [][]byte) { c[0], c[1] = c[1], c[0] })
		},
		"one chunk left out": func(b []byte) []byte {
			return rearrange(t, b, func(c [][]byte) { c[0] = nil })
		},
		"one chunk twice": func(b []byte) []byte {
			return rearrange(t, b, func(c [][]byte) { c[1] = slices.Concat(c[1], c[1]) })
		},
		"an empty chunk": func(b []byte) []byte {
			return slices.Concat(b[:32], []byte{16}, make([]byte, 16), b[32:])
		},
		"a huge chunk": func(b []byte) []byte {
			return slices.Concat(b[:32], []byte{0xbf, 0xff, 0xff, 0xff}, b[32:])
		},
	} {
		if _, whole, streamed := openTampered(t, g, client, keep); whole != nil || streamed != nil {
			t.Fatal(whole, streamed)
		}
		text, whole, streamed := openTampered(t, g, client, change)
		if whole == nil || streamed == nil || !strings.HasPrefix("Paris", text) {
			t.Errorf("%s: %v, %v, %q", name, whole, streamed, text)
		}
	}
}

// rearrange changes the order of a sealed answer's chunks, each with its length; the last one is
// the final chunk.
func rearrange(t *testing.T, sealed []byte, change func([][]byte)) []byte {
	var chunks [][]byte
	for rest := sealed[32:]; ; {
		r := bytes.NewReader(rest)
		n, size, err := bhttp.ReadVarint(r)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			chunks = append(chunks, rest)
			break
		}
		chunks = append(chunks, rest[:size+int(n)])
		rest = rest[size+int(n):]
	}
	if len(chunks) < 3 {
		t.Fatalf("only %d chunks", len(chunks))
	}
	change(chunks)
	return slices.Concat(sealed[:32], slices.Concat(chunks...))
}

// Whoever holds the gateway's key may still send nonsense.
func TestMalformedMessagesInside(t *testing.T) {
	head := func(fields ...bhttp.Field) []byte {
		var e bhttp.Encoder
		b, err := e.ResponseHead(nil, 200, fields)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	json := bhttp.Field{Name: "content-type", Value: "application/json"}
	events := bhttp.Field{Name: "content-type", Value: "text/event-stream"}
	for name, test := range map[string]struct {
		message []byte
		want    error
	}{
		"nothing":           {nil, sealedchat.ErrTruncated},
		"a request":         {[]byte{0, 4, 'P', 'O', 'S', 'T'}, sealedchat.ErrEnvelope},
		"status 99":         {[]byte{1, 0x40, 99, 0, 0}, sealedchat.ErrEnvelope},
		"header cut":        {head(json)[:9], sealedchat.ErrTruncated},
		"content cut":       {append(head(json), 9, '{'), sealedchat.ErrTruncated},
		"no end of content": {append(head(json), 2, '{', '}'), sealedchat.ErrTruncated},
		"padding that is not 0": {append(head(json), 2, '{', '}', 0, 0, 0, 1),
			sealedchat.ErrEnvelope},
		"no JSON":       {append(head(json), 2, '[', '1', 0), nil},
		"no last event": {append(head(events), 2, ':', '\n', 0), nil},
	} {
		g := fakes.NewGateway(t, nil)
		g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				return false
			}
			x, err := ohttp.Open(r.Body, g.Ring, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, x.Request())
			w.Header().Set("Content-Type", ohttp.TypeResponse)
			answer, _ := x.Response(w)
			_, _ = answer.Write(test.message)
			_ = answer.Finish()
			return true
		}
		client := directClient(t, g, nil)
		for way, call := range callsOf(client) {
			if err := call(t.Context()); err == nil ||
				(test.want != nil && !errors.Is(err, test.want)) {
				t.Errorf("%s, %s: %v", name, way, err)
			}
		}
	}
}

// The content's own end is missing, although the final chunk opened.
func TestContentThatEndsEarlyIsTruncated(t *testing.T) {
	for name, test := range map[string]struct{ kind, content, path string }{
		"events": {"text/event-stream", "data: {\"choices\":[]}\n\n", "/v1/chat/completions"},
		"half an event": {"text/event-stream", "data: {\"choices\":[]}\n\ndata: [DO",
			"/v1/chat/completions"},
		"a response": {"text/event-stream; charset=utf-8",
			"event: response.created\ndata: {}\n\n", "/v1/responses"},
		"embeddings":     {"application/json", `{"data":[{"embedding":[1,2`, "/v1/embeddings"},
		"an open string": {"application/json", `{"data":"}`, "/v1/embeddings"},
		"nothing":        {"application/json", ``, "/v1/models"},
	} {
		g := fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", test.kind)
			_, _ = io.WriteString(w, test.content)
		})
		client := directClient(t, g, nil)
		sdk := client.HTTPClient()
		resp, err := sdk.Post("https://gateway.test"+test.path, "application/json",
			strings.NewReader(`{"model":"m","stream":true}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		content, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		// whole events
		if !errors.Is(err, sealedchat.ErrTruncated) ||
			string(content) != strings.TrimSuffix(test.content, "data: [DO") {
			t.Errorf("%s: %v after %q", name, err, content)
		}
	}
}

func TestInterruptedBodies(t *testing.T) {
	g := fakes.StartGateway(t, nil)
	g.Inner = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"choices\":[]}\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		w.(*fakes.Writer).Abandon()
	}
	client := ohttpClient(t, g.URL, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("no longer wanted")
	var last error
	n := 0
	for _, err := range client.Stream(ctx, ask("x")) {
		if last = err; err == nil {
			n++
			cancel(why)
		}
	}
	if n != 1 || !errors.Is(last, why) || !errors.Is(last, context.Canceled) ||
		errors.Is(last, sealedchat.ErrTruncated) {
		t.Errorf("cancelled: %v after %d chunks", last, n)
	}
	for chunk, err := range client.Stream(t.Context(), ask("x")) {
		if err != nil {
			last = err
			break
		}
		_ = chunk
		_ = client.Close() // waits for the stream to end, which it does although nobody reads
	}
	if !errors.Is(last, sealedchat.ErrClosed) {
		t.Errorf("closed: %v", last)
	}
	if s := client.Stats(); s.InFlight != 0 || s.Failures != 2 {
		t.Errorf("%+v", s)
	}
	timed := ohttpClient(t, g.URL, func(c *sealedchat.Config) { c.Timeout = 50e6 })
	for _, err := range timed.Stream(t.Context(), ask("x")) {
		last = err
	}
	if !errors.Is(last, sealedchat.ErrConnection) || !errors.Is(last, context.DeadlineExceeded) ||
		errors.Is(last, sealedchat.ErrTruncated) {
		t.Errorf("out of time: %v", last)
	}
}
