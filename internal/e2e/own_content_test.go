// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// ofOneLetter tells the letter of which text consists, or 0.
func ofOneLetter(text string) byte {
	if text == "" || strings.Trim(text, text[:1]) != "" {
		return 0
	}
	return text[0]
}

// letters is an upstream that answers with the letter that it was asked with, as often, in ways
// that the first message names. It tells wrong of prompts that are not of one letter.
func letters(wrong func(string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/early") { // before all of the request has come
			var some [100]byte
			_, _ = io.ReadFull(r.Body, some[:])
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"message":"too early"}}`)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var q struct {
			Stream   bool
			Messages []struct{ Content string }
		}
		if err := json.Unmarshal(body, &q); err != nil || len(q.Messages) != 2 {
			wrong(fmt.Sprintf("not a request: %.100q", body))
			return
		}
		text := q.Messages[1].Content
		if ofOneLetter(text) == 0 {
			wrong("mixed prompt")
		}
		how := q.Messages[0].Content
		if !q.Stream {
			answer := []byte(strings.Replace(testkit.FineAnswer, `"t"`, `"`+text+`"`, 1))
			w.Header().Set("Content-Type", "application/json")
			if how == "unknown" {
				_ = http.NewResponseController(w).Flush()
			}
			_, _ = w.Write(answer)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; len(text) > 0; i++ {
			n := min(len(text), 1+i*97)
			_, _ = fmt.Fprintf(w, "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":"+
				"{\"content\":%q},\"finish_reason\":null}]}\n\n", text[:n])
			if text = text[n:]; how == "cut" && i == 20 {
				panic(http.ErrAbortHandler)
			}
			if i%7 == 0 {
				_ = http.NewResponseController(w).Flush()
			}
		}
		_, _ = io.WriteString(w, "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{},"+
			"\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	})
}

// Memory goes from one request to the next. Clients who ask at the same time, leave early, send
// more than the upstream reads, and are cut off still get what is theirs, and nothing else.
func TestEachGetsTheirOwn(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var faults []string
			wrong := func(f string) {
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, f)
			}
			g := startGateway(t, letters(wrong), func(c *sealedchat.GatewayConfig) {
				c.OHTTP = sealedchat.GatewayOHTTP{StrangerRate: -1,
					Allow: []string{"POST /v1/chat/completions", "POST /v1/early"}}
				c.Keys = storedKeys(t, "rsa-2048")
			})
			server := httptest.NewUnstartedServer(g)
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			client := ohttpClient(t, server.URL, func(c *sealedchat.Config) {
				c.Transport = server.Client().Transport
			})
			var wg sync.WaitGroup
			for worker := range 8 {
				wg.Go(func() {
					random := rand.New(rand.NewPCG(uint64(worker), 1))
					for range 6 {
						asksForOwn(t.Context(), client, random, wrong)
					}
				})
			}
			wg.Wait()
			for _, f := range faults {
				t.Error(f)
			}
		})
	}
}

// asksForOwn makes one call of any kind.
func asksForOwn(ctx context.Context, client *sealedchat.SecureCompletionClient, random *rand.Rand,
	wrong func(string)) {
	letter := string(rune('a' + random.IntN(26)))
	size := []int{1, 10, 1000, 4000, 9000, 17_000, 66_000, 200_000}[random.IntN(8)]
	text := strings.Repeat(letter, size+random.IntN(50))
	stream, early := random.IntN(2) == 0, random.IntN(6) == 0
	how := []string{"plain", "unknown", "cut"}[random.IntN(3)]
	path := "/v1/chat/completions"
	if random.IntN(6) == 0 {
		path = "/v1/early"
	}
	if random.IntN(6) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(random.IntN(3000))*time.Microsecond)
		defer cancel()
	}
	body := fmt.Sprintf(`{"model":"m","stream":%v,"messages":[{"role":"system","content":%q},`+
		`{"role":"user","content":%q}]}`, stream, how, text)
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://sealed"+path,
		bytes.NewReader([]byte(body)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.HTTPClient().Do(req)
	if err != nil {
		if ctx.Err() == nil && path != "/v1/early" && !(how == "cut" && stream) {
			wrong(err.Error())
		}
		return
	}
	defer resp.Body.Close()
	if early {
		var some [100]byte
		_, _ = io.ReadFull(resp.Body, some[:])
		return
	}
	got, err := io.ReadAll(resp.Body)
	if path == "/v1/early" {
		// 502: net/http's server closes on what it did not read, and the reset may overtake its answer
		if s := resp.StatusCode; s != http.StatusBadRequest && s != http.StatusBadGateway &&
			ctx.Err() == nil {
			wrong(fmt.Sprint("early: ", resp.Status))
		}
		return
	}
	if err != nil {
		if ctx.Err() == nil && !(how == "cut" && stream) {
			wrong(fmt.Sprintf("%s %v %d: %v", how, stream, size, err))
		}
		if !stream {
			return
		}
	}
	have := textOfAnswer(got, stream)
	if have != "" && ofOneLetter(have) != letter[0] || err == nil && have != text {
		wrong(fmt.Sprintf("asked for %d of %s, got %d: %.40q", len(text), letter, len(have), have))
	}
}

// textOfAnswer is what an answer says, as far as it came.
func textOfAnswer(answer []byte, stream bool) string {
	type choice struct{ Message, Delta struct{ Content string } }
	var text strings.Builder
	take := func(data string) {
		var a struct{ Choices []choice }
		if json.Unmarshal([]byte(data), &a) == nil && len(a.Choices) > 0 {
			text.WriteString(a.Choices[0].Message.Content + a.Choices[0].Delta.Content)
		}
	}
	if !stream {
		take(string(answer))
		return text.String()
	}
	for line := range strings.Lines(string(answer)) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			take(data)
		}
	}
	return text.String()
}
