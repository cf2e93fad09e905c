// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/flight"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// This file serves evidence for the keys of both protocols (SPEC.md, section 14).

const (
	maxAttesting = 16               // requests for evidence at the same time
	attestTime   = 10 * time.Second // that one of them has, and its answer again
	maxUnread    = 4                // answers on their way to one address
	allUnread    = 128              // and to all; one has some 20 KiB, and 1 MiB at most
)

var errKeysOutside = errors.New("the key store has a folder: with an Attester its keys must " +
	"not leave the confidential VM; if the folder is inside, set KeysStayInside")

// attestation answers a request for evidence with a report of its own.
func (h *request) attestation() {
	nonce, ok := attest.ParseQuery(h.r.URL.RawQuery)
	if !ok {
		h.refuse(refuse(http.StatusBadRequest, "want ?nonce= and 64 lower-case hex digits"))
		return
	}
	text, p := h.evidence(nonce)
	if p != nil {
		h.refuse(p)
		return
	}
	unread, wait := h.s.limits.unread.Take(h.address(), 1)
	if wait > 0 {
		h.refuse(busyAttesting(nil))
		return
	}
	defer unread.Return()
	h.header("Content-Type", "application/json")
	// the client may be gone, or not read
	_ = h.writeWithin(min(attestTime, h.s.cfg.BodyTimeout), http.StatusOK, text)
}

// evidence makes the document for a nonce, or tells why not. Its place is free again before the
// client has the answer, so that the next client of the same address finds it so.
func (h *request) evidence(nonce [32]byte) ([]byte, *refusal) {
	lease, wait := h.s.limits.attesting.Take(h.address(), 1)
	if wait > 0 {
		return nil, busyAttesting(nil)
	}
	defer lease.Return()
	ctx, cancel := context.WithTimeout(h.r.Context(), min(attestTime, h.s.cfg.Timeout))
	defer cancel()
	// The goroutine of its own lets the request end when its time is over, also where Attester
	// does not. A panic of Attester comes back to this one.
	var apart flight.Group[[]byte]
	text, err := apart.Do(ctx, h.s.life, func(ctx context.Context) ([]byte, error) {
		if !h.s.enter() {
			return nil, fmt.Errorf("%w: gateway", fault.ErrClosed)
		}
		defer h.s.running.Done()
		return h.s.attest(ctx, nonce)
	})
	switch {
	case err == nil:
		return text, nil
	case ctx.Err() != nil:
		return nil, busyAttesting(err)
	case h.s.life.Err() != nil:
		return nil, closing()
	default:
		return nil, &refusal{status: http.StatusInternalServerError, detail: "no evidence",
			cause: err}
	}
}

func busyAttesting(cause error) *refusal {
	return unavailable("too many requests for evidence at the same time", cause).soon()
}

// attest makes the document for a nonce. One goroutine at a time is in Attester, until that has
// returned.
func (s *Server) attest(ctx context.Context, nonce [32]byte) ([]byte, error) {
	keys, err := s.attestedKeys(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case s.attesting <- struct{}{}:
		defer func() { <-s.attesting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	d, err := s.cfg.Attester(ctx, attest.ReportData(nonce, keys))
	if err != nil {
		return nil, err
	}
	d.Keys = keys
	return attest.Encode(&d)
}

// attestedKeys are the keys that clients trust, of the protocols that are served: made now if there
// are none yet.
func (s *Server) attestedKeys(ctx context.Context) (keys []attest.Key, err error) {
	add := func(kind uint8, fingerprint string) error {
		fp, err := hybrid.ParseFingerprint(fingerprint)
		keys = append(keys, attest.Key{Type: kind, Fingerprint: fp})
		return err
	}
	if s.cfg.ServeOHTTP {
		if _, err := s.cfg.Keys.Configs(ctx); err != nil {
			return nil, err
		}
		signer, err := s.cfg.Keys.Signer()
		if err != nil {
			return nil, err
		}
		if err := add(attest.TypeSigner, signer); err != nil {
			return nil, err
		}
	}
	if s.cfg.ServeV1 {
		key, err := s.cfg.Keys.Public(ctx)
		if err != nil {
			return nil, err
		}
		if err := add(attest.TypeRSA, key.Fingerprint()); err != nil {
			return nil, err
		}
	}
	return keys, nil
}
