// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
)

// envelopeV1 is the client's end of NOMYO's protocol v1.
type envelopeV1 struct {
	completionURL string
	keys          *KeyStore
	server        *serverKey
	maxAnswer     int64
	base          *url.URL
}

func (p *envelopeV1) fetchKeys(ctx context.Context, rt http.RoundTripper) ([]*PublicKey, error) {
	return fetchServerKey(ctx, rt, p.base, httpx.UserAgent)
}

func (p *envelopeV1) streams() bool { return false }

// openHeader is never called: answers come whole.
func (p *envelopeV1) openHeader(context.Context, *plainRequest, *sealedRequest,
	*http.Response) (*openedResponse, error) {
	return nil, errNotSealed
}

// route takes chat completions, whatever the path says before.
func (p *envelopeV1) route(req *http.Request) (*plainRequest, *unrouted) {
	if req.Method != http.MethodPost || !strings.HasSuffix(strings.TrimRight(req.URL.Path, "/"),
		"/chat/completions") {
		return nil, &unrouted{http.StatusNotFound, "unsupported_endpoint",
			"sealedchat: version 1 seals POST …/chat/completions alone, ProtocolOHTTP other " +
				"requests too; nothing was sent"}
	}
	return chatRequest(nil, true), nil
}

func (p *envelopeV1) warm(ctx context.Context) error {
	var wg sync.WaitGroup
	var keyErr error
	keyCtx, cancel := context.WithCancel(ctx)
	wg.Go(func() { _, keyErr = p.keys.Public(keyCtx) })
	defer wg.Wait()
	defer cancel() // the error of a server that is not trusted comes at once
	// here, where a panic of OnServerKey reaches the caller
	if _, err := p.server.get(ctx); err != nil {
		return err
	}
	wg.Wait()
	return keyErr
}

func (p *envelopeV1) seal(ctx context.Context, in *plainRequest, o *callOptions) (*sealedRequest,
	error) {
	server, err := p.server.get(ctx) // first: with an untrusted server nothing else happens
	if err != nil {
		return nil, err
	}
	key, err := p.keys.store.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer p.keys.store.Sweep() // the answer may take long
	r := &sealedRequest{payloadID: newUUID(), server: server, keys: p.keys, key: key}
	if r.http, err = p.request(ctx, r, in.content, o); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (p *envelopeV1) request(ctx context.Context, r *sealedRequest, plaintext []byte,
	o *callOptions) (*http.Request, error) {
	body, err := r.server.rsa.AppendSealed(nil, &envelope.Envelope{}, plaintext)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.completionURL,
		bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	h := req.Header
	h.Set("Content-Type", hybrid.ContentType)
	h.Set("User-Agent", httpx.UserAgent)
	h.Set(hybrid.HeaderPayloadID, r.payloadID)
	h.Set(hybrid.HeaderPublicKey, r.key.RSA.Public().Header())
	if o.tier != "" {
		h.Set(hybrid.HeaderTier, string(o.tier))
	}
	if o.apiKey != nil {
		if err := httpx.SetBearer(h, o.apiKey); err != nil {
			return nil, err
		}
	}
	return req, nil
}

func (p *envelopeV1) openAnswer(ctx context.Context, r *sealedRequest, outside *http.Response,
	into hybrid.Alloc) (*opened, error) {
	a, err := httpx.ReadWhole(ctx, httpx.Describe(r.http), outside, p.maxAnswer)
	if err != nil {
		return nil, err
	}
	e, err := envelope.Parse(a.Body, int(min(p.maxAnswer, maxBytes)))
	if err != nil {
		return nil, hybrid.EnvelopeError(err)
	}
	plaintext, err := hybrid.Open(&e, []*hybrid.PrivateKey{r.key.RSA}, nil, into)
	if err != nil {
		return nil, err
	}
	if !r.key.Seen.Add(sha256.Sum256(e.WrappedKey)) {
		clear(plaintext)
		return nil, fmt.Errorf("%w: this envelope was opened before", ErrReplay)
	}
	return &opened{plaintext: plaintext, processedAt: e.ProcessedAt}, nil
}

func (p *envelopeV1) failure(a *httpx.Answer) error { return apiErrorFrom(a) }

// resealHelps asks for the server's key again when the status is the one that an envelope for
// another key gets.
func (p *envelopeV1) resealHelps(ctx context.Context, r *sealedRequest, err error) (bool, error) {
	if refusal, ok := errors.AsType[*APIError](err); !ok ||
		refusal.StatusCode != http.StatusBadRequest {
		return false, nil
	}
	return p.server.refresh(ctx, r.server)
}

// fetchServerKey asks for the server's public key, with a User-Agent unless agent is "".
func fetchServerKey(ctx context.Context, rt http.RoundTripper, base *url.URL,
	agent string) ([]*PublicKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String()+hybrid.PathPublicKey,
		nil)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	req.Header.Set("User-Agent", agent)
	a, err := httpx.Exchange(rt, req, hybrid.MaxKeyText)
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, apiErrorFrom(a)
	}
	key, err := ParsePublicKey(a.Body)
	return []*PublicKey{key}, err
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return chatjson.UUID(b)
}
