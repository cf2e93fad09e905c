// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestRetriedKeyFetches(t *testing.T) {
	for name, c := range map[string]struct {
		status   int
		body     string
		attempts int
		is       error
	}{
		"500":   {500, "", 3, sealedchat.ErrServer},
		"429":   {429, "", 3, sealedchat.ErrRateLimited},
		"503":   {503, "", 1, sealedchat.ErrUnavailable},
		"404":   {404, "", 1, sealedchat.ErrNotFound},
		"400":   {400, "", 1, sealedchat.ErrInvalidRequest},
		"302":   {302, "", 1, sealedchat.ErrServer},
		"HTML":  {200, "<html>please log in</html>", 1, sealedchat.ErrPublicKey},
		"empty": {200, "", 1, sealedchat.ErrPublicKey},
		"much":  {200, strings.Repeat("A", 1<<20), 1, sealedchat.ErrTooLarge},
		"another key": {200, string(publicOf(t, "rsa-3072").PEM()), 1,
			&sealedchat.ServerKeyError{}},
	} {
		p := newPeer(t)
		p.key = func(int, *http.Request) (*http.Response, error) {
			return testkit.Respond(c.status, c.body), nil
		}
		pin := sealedchat.Pin(p.server.Public().Fingerprint())
		bubble(t, p, func(c *sealedchat.Config) {
			c.Trust = pin
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			if _, wrongKey := errors.AsType[*sealedchat.ServerKeyError](err); !errors.Is(err,
				c.is) && !wrongKey || wrongKey != (name == "another key") {
				t.Errorf("%s: %v", name, err)
			}
			if p.fetches != c.attempts || len(p.sent()) != 0 {
				t.Errorf("%s: %d fetches, %d posts", name, p.fetches, len(p.sent()))
			}
			p.key = nil
			if name == "500" { // and afterwards all is well
				if answer, err := client.Chat(t.Context(), ask(sdkPrompt)); err != nil ||
					answer.Text() != sdkAnswer {
					t.Error(err)
				}
			}
		})
	}
}

// A server that has another key by now is not a failed attempt: sealing for the new one neither
// waits nor counts.
func TestKeyRenewalIsNotARetry(t *testing.T) {
	renewed := publicOf(t, "rsa-3072")
	for name, c := range map[string]struct {
		after []int // statuses after the renewal
		most  int
		posts int
		err   error
	}{
		"then success":         {nil, -1, 2, nil},
		"then another refusal": {[]int{400, 400, 400}, 2, 2, sealedchat.ErrInvalidRequest},
		"then failures":        {[]int{500, 500, 500}, 2, 4, sealedchat.ErrServer},
		"then one failure":     {[]int{500}, 1, 3, nil},
		"then one too many":    {[]int{500}, -1, 2, sealedchat.ErrServer},
	} {
		p := newPeer(t)
		p.key = func(n int, _ *http.Request) (*http.Response, error) {
			if n == 0 {
				return p.keyResponse(), nil
			}
			return testkit.Respond(200, string(renewed.PEM())), nil
		}
		p.failing(append([]int{400}, c.after...)...)
		limiter := &countingLimiter{}
		bubble(t, p, func(cfg *sealedchat.Config) {
			cfg.MaxRetries, cfg.Limiter = c.most, limiter
		}, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
			_, err := client.Chat(t.Context(), ask(sdkPrompt))
			if !errors.Is(err, c.err) || c.err == nil && err != nil || len(p.sent()) != c.posts {
				t.Errorf("%s: %v after %d posts", name, err, len(p.sent()))
			}
		})
		posts := p.sent()
		if posts[1].at != posts[0].at || posts[0].plaintext == "" || posts[1].plaintext != "" {
			t.Errorf("%s: waited %v, or the wrong key was sealed to", name, p.waits())
		}
		if limiter.waits != len(posts) {
			t.Errorf("%s: the limiter was waited on %d times for %d posts", name, limiter.waits,
				len(posts))
		}
	}
}

// A server that shows another key each time gets one more request, and no more.
func TestKeyRenewalHappensOnce(t *testing.T) {
	texts := []string{string(publicOf(t, "rsa-2048").PEM()), string(publicOf(t, "rsa-3072").PEM())}
	p := newPeer(t)
	p.key = func(n int, _ *http.Request) (*http.Response, error) {
		return testkit.Respond(200, texts[n%2]), nil
	}
	bubble(t, p, nil, func(t *testing.T, client *sealedchat.SecureCompletionClient) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p.answer = func(n int, _ *http.Request) (*http.Response, error) {
			if n > 20 {
				cancel() // or it would never end
			}
			return testkit.Respond(400, ""), nil
		}
		if _, err := client.Chat(ctx, ask(sdkPrompt)); !errors.Is(err,
			sealedchat.ErrInvalidRequest) || len(p.sent()) != 2 {
			t.Errorf("%v after %d posts", err, len(p.sent()))
		}
	})
}
