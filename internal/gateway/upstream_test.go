// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayForwards(t *testing.T) {
	r := newRig(
		t,
		func(c *Config) { c.UpstreamKey, c.Tier = secret(t, "upstream-key"), hybrid.TierMaximum },
	)
	const odd = ` { "messages" : [ {"role":"user","content":"<\u00e9 é>"} ] , "model" : "m" , ` +
		`"top_k":40, "big":123456789012345678901234567890 , "x":1e400 } ` + "\n"
	for _, c := range []struct{ sealed, want string }{
		{fakes.FineRequest, fakes.FineRequest},
		{odd, odd},
		{`{"stream":true,"model":"m","stream_options":{"include_usage":true},"messages":[{"role":"u"}],` +
			`"api_key":"k","base_url":"b","security_tier":"high","n":2}`,
			`{"model":"m","messages":[{"role":"u"}],"n":2}`},
		{`{"model":"m","messages":[{"role":"u","stream":1,"api_key":2}],"\u0073tream":true,` +
			`"s\u0074ream_options":1,"api\u005fkey":1,"Stream":2,"stream ":3}`,
			`{"model":"m","messages":[{"role":"u","stream":1,"api_key":2}],"Stream":2,"stream ":3}`},
		{
			`{"stream":false,"stream":true,"model":"a","model":"m","messages":[{"role":"u"}]}`,
			`{"model":"a","model":"m","messages":[{"role":"u"}]}`,
		},
	} {
		fakes.OpenedAnswer(
			t,
			c.sealed,
			r.Do(
				fakes.Post(
					t,
					c.sealed,
					"Authorization",
					"Bearer client-key",
					"Cookie",
					"a=b",
					"X-Forwarded-For",
					"192.0.2.1",
					"X-Security-Tier",
					"standard",
				),
			),
		)
		all := r.Forwarded()
		got := all[len(all)-1]
		if got.Body != c.want {
			t.Errorf("sealed   %s\nupstream %s\nwant     %s", c.sealed, got.Body, c.want)
		}
		if got.URL != "https://upstream.test/v1/chat/completions" {
			t.Errorf("sent to %s", got.URL)
		}
		var names []string
		for name := range got.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		if want := []string{
			"Accept", "Accept-Encoding", "Authorization", "Content-Type", "User-Agent",
		}; !slices.Equal(
			names,
			want,
		) ||
			got.Header.Get("Authorization") != "Bearer upstream-key" ||
			got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("headers %v", got.Header)
		}
	}
	r = newRig(t, nil)
	fakes.OpenedAnswer(
		t,
		"no key",
		r.Do(fakes.Post(t, fakes.FineRequest, "Authorization", "Bearer client-key")),
	)
	if h := r.Forwarded()[0].Header; h.Get("Authorization") != "" {
		t.Errorf("the client's Authorization went upstream: %v", h)
	}
}

func TestGatewayRefusesPlaintext(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Tier = hybrid.TierHigh })
	deep := strings.Repeat("[", chatjson.MaxDepth) + strings.Repeat("]", chatjson.MaxDepth)
	for _, c := range []struct {
		plaintext string
		status    int
	}{
		{``, 400}, {`null`, 400}, {`[]`, 400}, {`"x"`, 400}, {`{`, 400}, {`{}`, 400},
		{"\xef\xbb\xbf" + fakes.FineRequest, 400}, {fakes.FineRequest + `x`, 400},
		{strings.Replace(fakes.FineRequest, "hi", "\xff", 1), 400},
		{strings.Replace(fakes.FineRequest, `"hi"`, deep, 1), 400},
		{strings.Replace(fakes.FineRequest, `"hi"`, "NaN", 1), 400},
		{`{"messages":[{"role":"u"}]}`, 400}, {`{"model":"","messages":[{"role":"u"}]}`, 400},
		{`{"model":1,"messages":[{"role":"u"}]}`, 400}, {`{"Model":"m","messages":[{"role":"u"}]}`, 400},
		{`{"model":"m","model":null,"messages":[{"role":"u"}]}`, 400}, {`{"model":"m"}`, 400},
		{`{"model":"m","messages":[]}`, 400}, {`{"model":"m","messages":{}}`, 400},
		{`{"model":"m","messages":null}`, 400}, {`{"model":"m","messages":"x"}`, 400},
		{`{"model":"m","messages":["x"]}`, 400}, {`{"model":"m","messages":[{}]}`, 400},
		{`{"model":"m","messages":[{"role":""}]}`, 400}, {`{"model":"m","messages":[{"role":1}]}`, 400},
		{`{"model":"m","messages":[{"role":"u"},null]}`, 400},
		{`{"model":"m","messages":[{"Role":"u"}]}`, 400},
		{`{"model":"m","messages":[{"role":"u"}],"security_tier":"maximum"}`, 403},
		{
			`{"model":"m","messages":[{"role":"u"}],"security_tier":"standard",` +
				`"security\u005ftier":"maximum"}`,
			403,
		},
		{`{"model":"m","messages":[{"role":"u"}],"security_tier":"ultra"}`, 400},
	} {
		fakes.Refused(
			t,
			c.plaintext[:min(len(c.plaintext), 80)],
			r.Do(fakes.Post(t, c.plaintext)),
			c.status,
		)
	}
	for name, body := range map[string]string{
		"empty": "", "not JSON": "x", "plaintext": fakes.FineRequest,
		"cut": string(fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)[:500]),
		"another version": strings.Replace(
			string(fakes.SealedBody(t, fakes.FineRequest, envelope.Separate)), `"1.0"`, `"2.0"`, 1,
		),
	} {
		fakes.Refused(t, name, r.Do(fakes.PostBody(t, strings.NewReader(body))), 400)
	}
	other, err := fakes.Seal(publicOf(t, "rsa-3072"), []byte(fakes.FineRequest))
	if err != nil {
		t.Fatal(err)
	}
	fakes.Refused(
		t,
		"for a key of another size",
		r.Do(fakes.PostBody(t, strings.NewReader(string(envelope.Append(nil, other))))),
		400,
	)
	e, _ := fakes.Seal(publicOf(t, "rsa-2048"), []byte(fakes.FineRequest))
	e.Sealed[len(e.Sealed)-1] ^= 1
	tag := r.Do(fakes.PostBody(t, strings.NewReader(string(envelope.Append(nil, e)))))
	e, _ = fakes.Seal(publicOf(t, "rsa-2048"), []byte(fakes.FineRequest))
	e.WrappedKey[100] ^= 1
	key := r.Do(fakes.PostBody(t, strings.NewReader(string(envelope.Append(nil, e)))))
	fakes.Refused(t, "tag", tag, 400)
	fakes.Refused(t, "wrapped key", key, 400)
	if tag.Body.String() != key.Body.String() || len(tag.Header()) != len(key.Header()) {
		t.Errorf("failures to decrypt can be told apart: %s, %s", tag.Body, key.Body)
	}
	if n := len(r.Forwarded()); n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
}

func TestGatewaySeals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Tier = hybrid.TierHigh })
	upstream := " { \"id\" : \"x\",\"object\":\"chat.completion\",\"created\":1,\"model\":null," +
		"\"choices\":[ ]," +
		"\"_metadata\":{\"payload_id\":\"forged\",\"security_tier\":\"maximum\"}," +
		"\"big\":123456789012345678901234567890,\"_meta\\u0064ata\":1 }\r\n"
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		return testkit.Respond(200, upstream), nil
	}
	for _, form := range []envelope.TagForm{envelope.Separate, envelope.Appended} {
		before := time.Now().Unix()
		w := r.Do(
			fakes.PostBody(
				t,
				strings.NewReader(string(fakes.SealedBody(t, fakes.FineRequest, form))),
				"X-Payload-ID",
				"the-id",
			),
		)
		plaintext, e := fakes.OpenedAnswer(t, "answer", w)
		if e.TagForm != form ||
			strings.Contains(w.Body.String(), `"tag"`) != (form == envelope.Separate) {
			t.Errorf("tag form %v, asked in %v", e.TagForm, form)
		}
		if !e.HasProcessedAt || e.ProcessedAt < float64(before) ||
			e.ProcessedAt > float64(time.Now().Unix()) {
			t.Errorf("processed_at %v", e.ProcessedAt)
		}
		if w.Header().Get("Content-Type") != "application/octet-stream" ||
			w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("headers %v", w.Header())
		}
		kept := " { \"id\" : \"x\",\"object\":\"chat.completion\",\"created\":1,\"model\":null," +
			"\"choices\":[ ]," +
			"\"big\":123456789012345678901234567890"
		if !strings.HasPrefix(plaintext, kept) || strings.Contains(plaintext, "forged") ||
			strings.Contains(plaintext, "\\u0064") {
			t.Errorf("sealed %s", plaintext)
		}
		var got struct {
			Metadata metadata `json:"_metadata"`
		}
		if err := json.Unmarshal([]byte(plaintext), &got); err != nil {
			t.Fatal(err)
		}
		m := got.Metadata
		if m.PayloadID != "the-id" || m.Tier != hybrid.TierHigh ||
			m.ProcessedAt != int64(e.ProcessedAt) ||
			!m.IsEncrypted ||
			m.Status != "success" ||
			m.Algorithm != "hybrid-aes256-rsa4096" {
			t.Errorf("_metadata %+v", m)
		}
	}
}

// Whatever the upstream does, the client gets the documented status and none of the upstream's
// words, nor does the log.
func TestGatewayUpstreamFailures(t *testing.T) {
	const m = "MARKER-upstream"
	words := `{"error":{"message":"` + m + `","code":"` + m + `"}}`
	status := func(code int, header ...string) func(*http.Request, []byte) (*http.Response, error) {
		return func(*http.Request, []byte) (*http.Response, error) {
			return testkit.Respond(code, words, header...), nil
		}
	}
	body := func(text string, header ...string) func(*http.Request, []byte) (*http.Response, error) {
		return func(*http.Request, []byte) (*http.Response, error) {
			return testkit.Respond(200, text, header...), nil
		}
	}
	for name, c := range map[string]struct {
		answer func(*http.Request, []byte) (*http.Response, error)
		status int
		retry  string
	}{
		"400": {status(400), 400, ""}, "401": {status(401), 424, ""}, "403": {status(403), 424, ""},
		"402": {status(402), 402, ""}, "407": {status(407), 424, ""},
		"409": {status(409), 400, ""}, "410": {status(410), 410, ""},
		"415": {status(415), 415, ""}, "406": {status(406), 502, ""},
		"404": {status(404), 404, ""}, "405": {status(405), 405, ""},
		"408": {status(408), 504, ""}, "413": {status(413), 413, ""}, "418": {status(418), 502, ""},
		"422": {status(422), 422, ""}, "429": {status(429), 429, ""},
		"429 after": {status(429, "Retry-After", "7"), 429, "7"},
		"500":       {status(500, "Retry-After", "7"), 502, ""}, "502": {status(502), 502, ""},
		"503":          {status(503), 503, ""},
		"503 after":    {status(503, "Retry-After", "1800"), 503, "1800"},
		"503 nonsense": {status(503, "Retry-After", m), 503, ""}, "504": {status(504), 504, ""},
		"301":          {status(301, "Location", "https://"+m+".test/"), 502, ""},
		"307":          {status(307, "Location", "https://"+m+".test/"), 502, ""},
		"bad redirect": {status(302, "Location", "http://["+m), 502, ""},
		"204":          {status(204), 422, ""}, "201": {status(201), 422, ""},
		"event stream": {
			body("data: {\"x\":\""+m+"\"}\n\ndata: [DONE]\n\n", "Content-Type", "text/event-stream"), 422,
			"",
		},
		"HTML":              {body("<html>" + m), 422, ""},
		"not a completion":  {body(`{"x":"` + m + `"}`), 422, ""},
		"an error with 200": {body(words), 422, ""},
		"invalid UTF-8": {
			body(strings.Replace(testkit.FineAnswer, `"t"`, "\"\xff"+m+"\"", 1)), 422, "",
		},
		"a chunk": {
			body(testkit.AnswerWith("object", `"chat.completion.chunk"`, "x", `"`+m+`"`)), 422, "",
		},
		"truncated JSON": {body(testkit.FineAnswer[:len(testkit.FineAnswer)-1]), 422, ""},
		"empty":          {body(""), 422, ""},
		"too large": {
			body(strings.Replace(testkit.FineAnswer, `"t"`, `"`+strings.Repeat("x", 5000)+`"`, 1)), 502, "",
		},
		"encoding": {body(testkit.FineAnswer, "Content-Encoding", m), 502, ""},
		"list":     {body(`["` + m + `"]`), 422, ""},
		"broken body": {func(*http.Request, []byte) (*http.Response, error) {
			r := testkit.Respond(200, "")
			r.Body, r.ContentLength = io.NopCloser(
				io.MultiReader(strings.NewReader(testkit.FineAnswer), brokenReader{m}),
			), -1
			return r, nil
		}, 502, ""},
		"no connection": {
			func(*http.Request, []byte) (*http.Response, error) { return nil, errors.New(m) }, 502, "",
		},
	} {
		r := newRig(t, func(c *Config) { c.MaxResponseBytes = 4000 })
		r.Answer = c.answer
		w := r.Do(fakes.Post(t, fakes.FineRequest))
		fakes.Refused(t, name, w, c.status)
		if detail := detailOf(w); !slices.Contains(upstreamTexts, detail) {
			t.Errorf("%s: %q", name, detail)
		}
		if w.Header().Get("Retry-After") != c.retry {
			t.Errorf("%s: Retry-After %q", name, w.Header().Get("Retry-After"))
		}
		if all := w.Body.String() + r.Logged(); strings.Contains(all, m) {
			t.Errorf("%s: the upstream's words: %s", name, all)
		}
		if strings.Contains(w.Body.String(), m) || len(r.Forwarded()) != 1 {
			t.Errorf("%s: %s, %d requests upstream", name, w.Body, len(r.Forwarded()))
		}
	}
}

// upstreamTexts are all that a client hears of what goes wrong upstream.
var upstreamTexts = []string{
	"the upstream failed", "the upstream refused the request as invalid",
	"the upstream answered 404: unknown model, or Upstream does not end in /v1",
	"the upstream answered 402: it wants to be paid",
	"the upstream answered 405: Upstream is no base URL that ends in /v1",
	"the upstream answered 409: it refused the request",
	"the upstream answered 410: the model is gone",
	"the upstream answered 415: it does not take JSON at this path",
	"the gateway's key is refused upstream",
	"the request is too large for the upstream", "the upstream is rate limited",
	"the upstream is unavailable",
	"the upstream did not answer in time", "the upstream's answer is too large",
	"the upstream's answer is not a chat completion",
}

func detailOf(w *httptest.ResponseRecorder) string {
	var body struct{ Detail string }
	_ = json.Unmarshal(w.Body.Bytes(), &body)
	return body.Detail
}

type brokenReader struct{ text string }

func (b brokenReader) Read([]byte) (int, error) { return 0, errors.New(b.text) }

func TestGatewayUpstreamLimit(t *testing.T) {
	for d, want := range map[int64]int{-1: 502, 0: 200, 1: 200} {
		r := newRig(t, func(c *Config) { c.MaxResponseBytes = int64(len(testkit.FineAnswer)) + d })
		if w := r.Do(fakes.Post(t, fakes.FineRequest)); w.Code != want {
			t.Errorf("%+d: %d %s", d, w.Code, w.Body)
		}
	}
}

// Upstream, http goes to loopback, or where it is said to be meant.
func TestGatewayUpstreamHTTP(t *testing.T) {
	l := testkit.ForeignAddress(t)
	var mu sync.Mutex
	served := 0
	server := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			served++
			mu.Unlock()
			_, _ = w.Write([]byte(testkit.FineAnswer))
		}),
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	log := &bytes.Buffer{}
	open := func(upstream string, insecure bool) (*Server, error) {
		return New(Config{
			Keys: storedKeys(t, "rsa-2048"), Upstream: upstream, AllowUnauthenticated: true,
			InsecureUpstreamHTTP: insecure, Logger: slog.New(slog.NewTextHandler(log, nil)),
			ServeV1: true,
		})
	}
	address := "http://" + l.Addr().String() + "/v1"
	if _, err := open(address, false); err == nil ||
		!strings.Contains(err.Error(), "InsecureUpstreamHTTP") {
		t.Errorf("an address that is not loopback, at start: %v", err)
	}
	r := newRig(t, func(c *Config) {
		c.Upstream, c.UpstreamTransport, c.InsecureUpstreamHTTP = address, nil, true
	})
	w := r.Do(fakes.Post(t, fakes.FineRequest).WithContext(testkit.Within(t, 0)))
	mu.Lock()
	if w.Code != 200 || served != 1 {
		t.Errorf("InsecureUpstreamHTTP: %d %s, %d served", w.Code, w.Body, served)
	}
	mu.Unlock()
	// Where a name leads is known when it is dialled: a warning at start, and a cause in the log.
	log.Reset()
	elsewhere := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}}
	s, err := New(Config{
		Keys: storedKeys(t, "rsa-2048"), Upstream: "http://name.test/v1", UpstreamTransport: elsewhere,
		AllowUnauthenticated: true, Logger: slog.New(slog.NewTextHandler(log, nil)), ServeV1: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !strings.Contains(log.String(), "level=WARN") ||
		!strings.Contains(log.String(), "InsecureUpstreamHTTP") {
		t.Errorf("no warning at start: %s", log)
	}
	log.Reset()
	answer := httptest.NewRecorder()
	s.ServeHTTP(answer, fakes.Post(t, fakes.FineRequest).WithContext(testkit.Within(t, 0)))
	fakes.Refused(t, "http to a name", answer, 502)
	mu.Lock()
	if served != 1 || !strings.Contains(log.String(), "InsecureUpstreamHTTP") {
		t.Errorf("%d served; the log has %s", served, log)
	}
	mu.Unlock()
	for _, upstream := range []string{"http://localhost:1/v1", "http://127.0.0.1:1", "https://h.test/v1"} {
		log.Reset()
		s, err := open(upstream, false)
		if err != nil || log.Len() != 0 {
			t.Errorf("%s: %v, %s", upstream, err, log)
			continue
		}
		_ = s.Close()
	}
	if _, err := New(
		Config{
			Keys: storedKeys(t, "rsa-2048"), Upstream: "http://name/v1",
			UpstreamTransport: testkit.NeverUsed(t), AllowUnauthenticated: true, InsecureUpstreamHTTP: true,
		},
	); err != nil {
		t.Errorf("a foreign RoundTripper with InsecureUpstreamHTTP: %v", err)
	}
}

// An upstream that does not even speak HTTP may answer with the prompt. That is not for the log.
func TestGatewayLogsNoContent(t *testing.T) {
	const m = "MARKER-prompt-0815"
	request := strings.Replace(fakes.FineRequest, `"hi"`, `"`+m+`"`, 1)
	for name, raw := range map[string]string{
		"no HTTP": m + "\r\n\r\n", "header": "HTTP/1.1 200 OK\r\n" + m + "\r\n\r\n",
		"length": "HTTP/1.1 200 OK\r\nContent-Length: " + m + "\r\n\r\n",
		"fine": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + strings.Replace(
			testkit.FineAnswer, `"t"`, `"`+m+`"`, 1,
		),
		"words":    "HTTP/1.1 400 " + m + "\r\nX-" + m + ": 1\r\nContent-Length: 18\r\n\r\n" + m,
		"transfer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + m + "\r\n\r\n",
		"location": "HTTP/1.1 302 OK\r\nLocation: http://[" + m + "\r\nContent-Length: 0\r\n\r\n",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			// all of it: closing with unread bytes resets the connection
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			_, _ = c.Write([]byte(raw))
		})
		r := newRig(
			t,
			func(c *Config) { c.Upstream, c.UpstreamTransport = "http://"+l.Addr().String()+"/v1", nil },
		)
		w := r.Do(fakes.Post(t, request, "Authorization", "Bearer "+m).WithContext(testkit.Within(t, 0)))
		if (w.Code == 200) != (name == "fine") || strings.Contains(w.Body.String(), m) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		line := r.Logged()
		if strings.Contains(line, m) {
			t.Errorf("%s: content in the log: %s", name, line)
		}
		for _, part := range []string{
			"payload_id=0e3b1a52-", "status=", "bytes_in=", "bytes_out=", "duration=", "upstream=",
		} {
			if strings.Count(line, part) != 1 {
				t.Errorf("%s: %s is not in the log line: %s", name, part, line)
			}
		}
		_ = r.s.Close()
		l.Close()
		wg.Wait()
	}
}

// What an upstream leaves out of a completion is filled in over version 1, so that stricter clients
// take it; what it says, and why it ends, is left alone.
func TestGatewayFillsIn(t *testing.T) {
	r := newRig(t, nil)
	for _, status := range []int{200, 201, 299} {
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			return testkit.Respond(status, `{"choices":[{"message":{"content":"hi"}}]}`), nil
		}
		w := r.Do(fakes.PostBody(
			t, strings.NewReader(string(fakes.SealedBody(t, fakes.FineRequest, envelope.Separate))),
			"X-Payload-ID", "the-id",
		))
		plaintext, _ := fakes.OpenedAnswer(t, "answer", w)
		var got struct {
			ID, Object, Model string
			Created           int64
			Choices           []map[string]any
			Usage             any
		}
		if err := json.Unmarshal([]byte(plaintext), &got); err != nil {
			t.Fatal(err)
		}
		message, _ := got.Choices[0]["message"].(map[string]any)
		if got.ID != "chatcmpl-the-id" || got.Object != "chat.completion" || got.Model == "" ||
			got.Created < 1 || got.Choices[0]["index"] != 0.0 || message["role"] != "assistant" ||
			message["content"] != "hi" || len(got.Choices[0]) != 2 || got.Usage != nil {
			t.Errorf("status %d: sealed %s", status, plaintext)
		}
	}
}
