// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/seed-017344ad/sealedchat"
)

// Streams of a client through httputil.ReverseProxy, cut at random by either end or not at all:
// nothing stays behind, and no cut answer passes for a whole one.
func TestOHTTPStreamsCutThroughRelay(t *testing.T) {
	w := newCutWorld(t)
	client := ohttpClient(t, w.relay, nil)
	streams := w.run(t, func() {}, func(p cutPlan) string { return runPlan(t, client, p) })
	if s := client.Stats(); s.InFlight != 0 || s.Requests != int64(streams) {
		t.Errorf("%+v", s)
	}
}

// runPlan runs one stream, and says what became of it.
func runPlan(t *testing.T, client *sealedchat.SecureCompletionClient, p cutPlan) string {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	byContext := p.after%2 == 0 // and not by leaving the loop
	r := ask("x")
	r.Extra = map[string]any{"events": p.events, "cut": p.cut}
	n := 0
	for chunk, err := range client.Stream(ctx, r) {
		switch {
		case byContext && p.leaves && n > p.after && errors.Is(err, context.Canceled):
			return "left"
		case err != nil && p.cut == "":
			t.Errorf("%+v: %v", p, err)
			return ""
		case err != nil:
			// An answer that the upstream broke off before it began is the gateway's 502.
			if _, refused := errors.AsType[*sealedchat.APIError](err); !errors.Is(err,
				sealedchat.ErrTruncated) && !refused {
				t.Errorf("%+v: %v", p, err)
			}
			return "cut"
		case chunk.Text() != fmt.Sprintf("%d ", n):
			t.Errorf("%+v: chunk %d is %q", p, n, chunk.Text())
		}
		if n++; p.leaves && n > p.after {
			if !byContext {
				return "left"
			}
			cancel() // what has come already may still be handed out
		}
	}
	if p.cut != "" || n != p.events {
		t.Errorf("%+v: a cut stream passed for a whole one of %d chunks", p, n)
	}
	return "whole"
}
