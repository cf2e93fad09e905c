// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestUpstreamFailuresCostOnce: over version 1 a failure that another attempt would meet again is
// paid for once, and says why in words of the gateway's own.
func TestUpstreamFailuresCostOnce(t *testing.T) {
	const m = "MARKER-of-the-upstream"
	whole := func(body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = io.WriteString(w, body) }
	}
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"error":{"message":"`+m+`"}}`)
		}
	}
	key := "the gateway's key is refused upstream"
	none := "the upstream's answer is not a chat completion"
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		status int
		says   string
		log    string
	}{
		"400": {status(400), 400, "as invalid", "upstream_code=400"},
		"401": {status(401), 424, key, "upstream_code=401"},
		"402": {status(402), 402, "402", "upstream_code=402"},
		"403": {status(403), 424, key, "upstream_code=403"},
		"404": {status(404), 404, "unknown model, or Upstream does not end in /v1",
			"upstream_code=404"},
		"405":  {status(405), 405, "Upstream", "upstream_code=405"},
		"407":  {status(407), 424, key, "upstream_code=407"},
		"409":  {status(409), 400, "409", "upstream_code=409"},
		"410":  {status(410), 410, "gone", "upstream_code=410"},
		"413":  {status(413), 413, "too large", "upstream_code=413"},
		"415":  {status(415), 415, "415", "upstream_code=415"},
		"422":  {status(422), 422, "as invalid", "upstream_code=422"},
		"HTML": {whole("<html>" + m), 422, none, "the answer: not a JSON object"},
		"no choices": {whole(`{"object":"chat.completion","x":"` + m + `"}`), 422, none,
			"upstream_code=200"},
		"another object": {whole(testkit.AnswerWith("object", `"list"`, "x", `"`+m+`"`)), 422,
			none, "cause=\"the answer is not a chat completion: object:"},
		"choices is a text": {whole(testkit.AnswerWith("choices", `"`+m+`"`, "x", "1")), 422, none,
			"completion: choices:"},
		"an error with 200": {whole(`{"error":{"message":"` + m + `"}}`), 422, none,
			"an error object in place of an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			log := &bytes.Buffer{}
			g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked++
				c.answer(w)
			}), func(config *sealedchat.GatewayConfig) {
				config.Logger = slog.New(slog.NewTextHandler(log, nil))
				config.Keys = storedKeys(t, "rsa-2048")
			})
			server := httptest.NewServer(g)
			client := startClient(t, server.URL, func(config *sealedchat.Config) {
				config.MaxRetries, config.Keys = 0, storedKeys(t, "rsa-3072")
			})
			_, err := client.Chat(t.Context(), ask("x"))
			server.Close() // its handlers have written the log, then
			refused, ok := errors.AsType[*sealedchat.APIError](err)
			if !ok || refused.StatusCode != c.status || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %d, %q", err, c.status, c.says)
			}
			line := log.String()
			if asked != 1 || !strings.Contains(line, "upstream_path=/v1/chat/completions") ||
				!strings.Contains(line, c.log) {
				t.Errorf("asked %d times; the log has %s, want %s", asked, line, c.log)
			}
			if err != nil && strings.Contains(err.Error()+line, m) {
				t.Errorf("the upstream's words: %v, %s", err, line)
			}
		})
	}
}

// TestSDKGetsTheSealedErrorWhole: over Oblivious HTTP an SDK can tell the upstream's errors apart.
func TestSDKGetsTheSealedErrorWhole(t *testing.T) {
	long := strings.Repeat("é", 3000)
	for name, c := range map[string]struct {
		status int
		body   string
		want   map[string]any // nil: of our own making
	}{
		"of llama.cpp": {400,
			`{"error":{"code":400,"message":"the request\nexceeds \"the\" context",` +
				`"type":"exceed_context_size_error","n_ctx":512}}`, map[string]any{
				"code": "400", "message": "the request\nexceeds \"the\" context",
				"type": "exceed_context_size_error", "param": nil}},
		"of OpenAI": {404, `{"error":{"message":"no model","type":"invalid_request_error",` +
			`"param":"model","code":"model_not_found"}}`, map[string]any{
			"code": "model_not_found", "message": "no model", "type": "invalid_request_error",
			"param": "model"}},
		"a long message": {422, `{"error":{"message":"` + long + `"}}`, map[string]any{
			"code": nil, "message": long[:4096], "type": "invalid_request_error", "param": nil}},
		"cut inside a character": {500, `{"error":{"message":"x` + long + `","type":null}}`,
			map[string]any{"code": nil, "message": "x" + long[:4094], "type": "server_error",
				"param": nil}},
		"another shape": {400, `{"detail":"words"}`, nil},
		"a string":      {400, `{"error":"words"}`, nil},
		"no JSON":       {400, `words`, nil},
		"no message":    {400, `{"error":{"type":"words"}}`, nil},
	} {
		for _, stream := range []bool{false, true} {
			g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}), func(config *sealedchat.GatewayConfig) { config.Keys = storedKeys(t, "rsa-2048") })
			server := httptest.NewServer(g)
			sdk := ohttpClient(t, server.URL, nil).HTTPClient()
			resp, err := sdk.Post(server.URL+"/v1/chat/completions", "application/json",
				strings.NewReader(
					`{"model":"m","stream":`+strconv.FormatBool(stream)+`,"messages":[]}`))
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Error map[string]any }
			err = json.NewDecoder(resp.Body).Decode(&got)
			_ = resp.Body.Close()
			server.Close()
			if err != nil || resp.StatusCode != c.status {
				t.Errorf("%s: %d, %v", name, resp.StatusCode, err)
			}
			for member, want := range c.want {
				if got.Error[member] != want {
					t.Errorf("%s: %s is %q, want %q", name, member, got.Error[member], want)
				}
			}
			if text, _ := got.Error["message"].(string); c.want == nil &&
				!strings.Contains(text, "answered 400 Bad Request with a sealed error") {
				t.Errorf("%s: %q", name, got.Error)
			}
		}
	}
}

// TestOwnRefusalsAreToldFromTheUpstreams: over Oblivious HTTP the gateway's own words are in the
// error's text, also when the request went upstream, and the upstream's are in Sealed alone.
func TestOwnRefusalsAreToldFromTheUpstreams(t *testing.T) {
	const m = "MARKER-of-the-upstream"
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/"+m)
			w.Header().Set(ohttp.HeaderProcessed, "no")
			w.Header().Set(ohttp.HeaderRefusedBy, "gateway")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"error":{"message":"`+m+`","code":"`+m+`"}}`)
		}
	}
	key := "the gateway's key is refused upstream"
	for name, c := range map[string]struct {
		upstream http.HandlerFunc
		status   int
		says     string // "": the words are the upstream's
	}{
		"401":      {status(401), 502, key},
		"403":      {status(403), 502, key},
		"407":      {status(407), 502, key},
		"redirect": {status(302), 502, "the upstream failed"},
		"cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502,
			"the upstream failed"},
		"too large": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(2<<10+8)) // in chunks it would begin
			_, _ = io.WriteString(w, `{"x":"`+strings.Repeat("x", 2<<10)+`"}`)
		}, 502, "the upstream's answer is too large"},
		"too slow": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 504,
			"did not answer in time"},
		"400": {status(400), 400, ""},
		"404": {status(404), 404, ""},
		"409": {status(409), 409, ""},
		"429": {status(429), 429, ""},
		"500": {status(500), 500, ""},
		"502": {status(502), 502, ""},
		"503": {status(503), 503, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32 // a cut connection hands nothing over
			g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				_, _ = io.Copy(io.Discard, r.Body) // or else its end is not seen
				c.upstream(w, r)
			}), func(config *sealedchat.GatewayConfig) {
				config.Keys, config.MaxResponseBytes = storedKeys(t, "rsa-2048"), 1<<10
				if c.status == 504 {
					config.Timeout = 50 * time.Millisecond
				}
			})
			server := httptest.NewServer(g)
			defer server.Close()
			client := ohttpClient(t, server.URL, nil)
			_, err := client.Chat(t.Context(), ask("x"))
			refused, ok := errors.AsType[*sealedchat.APIError](err)
			if !ok || refused.StatusCode != c.status || asked.Load() != 1 {
				t.Fatalf("%v, want %d; asked %d times", err, c.status, asked.Load())
			}
			code, detail := refused.Sealed()
			if own := c.says != ""; own != (refused.Detail != "") || own != (detail == "") ||
				own != (code == "") {
				t.Errorf("%+v, sealed were %q, %q", refused, code, detail)
			}
			if text := err.Error(); strings.Contains(text, m) || !strings.Contains(text, c.says) ||
				strings.Contains(text, "APIError.Sealed") != (c.says == "") {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// TestOneFailureInEachProtocol is the table of docs/troubleshooting.md.
func TestOneFailureInEachProtocol(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	schema := sealedchat.ErrResponseSchema
	for name, c := range map[string]struct {
		upstream http.HandlerFunc
		status   int // over version 1
		v1       error
		sealed   int // over Oblivious HTTP; 0: no *APIError
		ohttp    error
	}{
		"401": {status(401), 424, sealedchat.ErrInvalidRequest, 502, sealedchat.ErrServer},
		"403": {status(403), 424, sealedchat.ErrInvalidRequest, 502, sealedchat.ErrServer},
		"407": {status(407), 424, sealedchat.ErrInvalidRequest, 502, sealedchat.ErrServer},
		"no completion": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"object":"list","data":[]}`)
		}, 422, sealedchat.ErrInvalidRequest, 0, schema},
		"unreachable": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			502, sealedchat.ErrServer, 502, sealedchat.ErrServer},
		"redirect": {status(302), 502, sealedchat.ErrServer, 502, sealedchat.ErrServer},
		"500":      {status(500), 502, sealedchat.ErrServer, 500, sealedchat.ErrServer},
		"504":      {status(504), 504, sealedchat.ErrServer, 504, sealedchat.ErrServer},
		"400": {status(400), 400, sealedchat.ErrInvalidRequest, 400,
			sealedchat.ErrInvalidRequest},
		"404": {status(404), 404, sealedchat.ErrNotFound, 404, sealedchat.ErrNotFound},
		"429": {status(429), 429, sealedchat.ErrRateLimited, 429, sealedchat.ErrRateLimited},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, c.upstream, func(config *sealedchat.GatewayConfig) {
				config.Keys = storedKeys(t, "rsa-2048")
			})
			server := httptest.NewServer(g)
			defer server.Close()
			once := func(config *sealedchat.Config) {
				config.MaxRetries, config.Keys = -1, storedKeys(t, "rsa-3072")
			}
			check := func(client *sealedchat.SecureCompletionClient, status int, want error) {
				_, err := client.Chat(t.Context(), ask("x"))
				refused, ok := errors.AsType[*sealedchat.APIError](err)
				if ok != (status != 0) || ok && refused.StatusCode != status ||
					!errors.Is(err, want) {
					t.Errorf("%v, want %d, %v", err, status, want)
				}
			}
			check(startClient(t, server.URL, once), c.status, c.v1)
			check(ohttpClient(t, server.URL, func(config *sealedchat.Config) {
				config.MaxRetries = -1
			}), c.sealed, c.ohttp)
		})
	}
}
