// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// hidden are the words that a witness in front of the gateway must not see.
var hidden = []string{prompt, answer, toolArgs, toolSays, "chat.completion"}

func TestChat(t *testing.T) {
	each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
		w := newWorld(t, protocol, http.HandlerFunc(chat), settings{})
		got, err := w.open(t, s, goodKey)(t.Context(), ask{})
		want := reply{content: answer + " to " + prompt, finish: "stop", total: 30}
		if err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
		w.witness.MustNotSee(hidden...)
	})
}

func TestStream(t *testing.T) {
	each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
		w := newWorld(t, protocol, http.HandlerFunc(chat), settings{})
		var words []string
		got, err := w.open(t, s, goodKey)(t.Context(), ask{word: func(word string) {
			if word != "" {
				words = append(words, word)
			}
		}})
		want := reply{content: answer + " to " + prompt, finish: "stop", total: 30}
		if err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
		if strings.Join(words, "") != want.content ||
			protocol == sealedchat.ProtocolOHTTP && len(words) != 3 {
			t.Errorf("words %q", words)
		}
		w.witness.MustNotSee(hidden...)
	})
}

// Over Oblivious HTTP a word arrives before the upstream makes the next one.
func TestStreamIsLive(t *testing.T) {
	for _, s := range sdks {
		t.Run(s.name, func(t *testing.T) {
			next := make(chan struct{}, 8)
			w := newWorld(t, sealedchat.ProtocolOHTTP, http.HandlerFunc(
				func(rw http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					rw.Header().Set("Content-Type", "text/event-stream")
					for range 3 {
						event(rw, map[string]any{"content": answer}, nil, nil)
						select {
						case <-next:
						case <-r.Context().Done():
							return
						}
					}
					stream(rw, "", "stop", nil)
				}), settings{})
			got, err := w.open(t, s, goodKey)(testkit.Within(t, time.Minute),
				ask{word: func(word string) {
					if word != "" {
						next <- struct{}{}
					}
				}})
			if err != nil || got.content != strings.Repeat(answer, 3) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestTools(t *testing.T) {
	each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
		for _, word := range []func(string){nil, func(string) {}} {
			w := newWorld(t, protocol, http.HandlerFunc(chat), settings{})
			call := w.open(t, s, goodKey)
			first, err := call(t.Context(), ask{tools: true, word: word})
			want := reply{finish: "tool_calls", total: 30, calls: 1, call: "call_1",
				tool: "lookup", toolArgs: `{"city":"` + toolArgs + `"}`}
			if err != nil || first != want {
				t.Fatalf("stream %t: %+v, %v", word != nil, first, err)
			}
			second, err := call(t.Context(), ask{tools: true, after: &first, word: word})
			want = reply{content: answer + " to " + toolSays, finish: "stop", total: 30}
			if err != nil || second != want {
				t.Errorf("stream %t: %+v, %v", word != nil, second, err)
			}
			w.witness.MustNotSee(hidden...)
		}
	})
}

// A caller that gives up before the answer comes gets an error, and the upstream is let go.
func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
		for _, word := range []func(string){nil, func(string) {}} {
			ctx, cancel := context.WithCancel(testkit.Within(t, time.Minute))
			defer cancel()
			gone := make(chan struct{})
			w := newWorld(t, protocol, http.HandlerFunc(
				func(_ http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					cancel()
					<-r.Context().Done()
					close(gone)
				}), settings{})
			got, err := w.open(t, s, goodKey)(ctx, ask{word: word})
			if err == nil || s.name != "langchaingo" && !errors.Is(err, context.Canceled) {
				t.Errorf("stream %t: %+v, %v", word != nil, got, err)
			}
			select {
			case <-gone:
			case <-testkit.Within(t, time.Minute).Done():
				t.Errorf("stream %t: the upstream still works", word != nil)
			}
		}
	})
}

// A caller that gives up inside of a stream. langchaingo may return what it has without an error,
// since it looks at its context alone; but then it has no reason for the end.
func TestCancelInsideAStream(t *testing.T) {
	many := strings.Repeat(answer+" ", 40_000)
	each(t, func(t *testing.T, s sdk, protocol sealedchat.Protocol) {
		ctx, cancel := context.WithCancel(testkit.Within(t, time.Minute))
		defer cancel()
		gone := make(chan struct{})
		w := newWorld(t, protocol, http.HandlerFunc(
			func(rw http.ResponseWriter, r *http.Request) {
				defer close(gone)
				_, _ = io.Copy(io.Discard, r.Body)
				if protocol == sealedchat.ProtocolEnvelope {
					complete(rw, many, "stop", nil)
					return
				}
				rw.Header().Set("Content-Type", "text/event-stream")
				event(rw, map[string]any{"content": answer}, nil, nil)
				<-r.Context().Done()
			}), settings{})
		read := 0
		got, err := w.open(t, s, goodKey)(ctx, ask{word: func(word string) {
			if read += len(word); read > 0 {
				cancel()
			}
		}})
		if err == nil && (s.name != "langchaingo" || got.finish != "") {
			t.Errorf("%+v, without an error", got.finish)
		}
		if read == 0 || read > len(many)/2 {
			t.Errorf("read %d bytes of %d", read, len(many))
		}
		select {
		case <-gone:
		case <-testkit.Within(t, time.Minute).Done():
			t.Error("the upstream still works")
		}
	})
}
