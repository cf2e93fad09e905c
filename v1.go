// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
)

const (
	pathPublicKey  = "/pki/public_key"
	pathCompletion = "/v1/chat/secure_completion"

	headerPayloadID = "X-Payload-ID"
	headerPublicKey = "X-Public-Key"
	headerTier      = "X-Security-Tier"
	contentType     = "application/octet-stream"
	userAgent       = "sealedchat"
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
	return fetchServerKey(ctx, rt, p.base)
}

func (p *envelopeV1) streams() bool { return false }

// openHeader is never called: answers come whole.
func (p *envelopeV1) openHeader(context.Context, *plainRequest, *sealedRequest, *http.Response) (*openedResponse, error) {
	return nil, errNotSealed
}

// route takes chat completions, whatever the path says before.
func (p *envelopeV1) route(req *http.Request) (*plainRequest, *unrouted) {
	if req.Method != http.MethodPost || !strings.HasSuffix(strings.TrimRight(req.URL.Path, "/"), "/chat/completions") {
		return nil, &unrouted{http.StatusNotFound, "unsupported_endpoint",
			"sealedchat: only POST …/chat/completions travels sealed; nothing was sent"}
	}
	return chatRequest(nil, true), nil
}

func (p *envelopeV1) warm(ctx context.Context) error {
	var wg sync.WaitGroup
	var keyErr error
	keyCtx, cancel := context.WithCancel(ctx)
	wg.Go(func() { _, keyErr = p.keys.Public(keyCtx) })
	defer wg.Wait()
	defer cancel()                               // a server that is not trusted is told at once; the key is made all the same
	if _, err := p.server.get(ctx); err != nil { // here, where a panic of OnServerKey reaches the caller
		return err
	}
	wg.Wait()
	return keyErr
}

func (p *envelopeV1) seal(ctx context.Context, in *plainRequest, o *callOptions) (*sealedRequest, error) {
	server, err := p.server.get(ctx) // first: with an untrusted server nothing else happens
	if err != nil {
		return nil, err
	}
	key, err := p.keys.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer p.keys.sweeper.Soon() // the answer may take long
	r := &sealedRequest{payloadID: newUUID(), server: server, keys: p.keys, key: key}
	if r.http, err = p.request(ctx, r, in.content, o); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (p *envelopeV1) request(ctx context.Context, r *sealedRequest, plaintext []byte, o *callOptions) (*http.Request, error) {
	body, err := r.server.appendSealed(nil, &envelope.Envelope{}, plaintext)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.completionURL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	h := req.Header
	h.Set("Content-Type", contentType)
	h.Set("User-Agent", userAgent)
	h.Set(headerPayloadID, r.payloadID)
	h.Set(headerPublicKey, r.key.public.header())
	if o.tier != "" {
		h.Set(headerTier, string(o.tier))
	}
	if o.apiKey != nil {
		if err := setBearer(h, o.apiKey); err != nil {
			return nil, err
		}
	}
	return req, nil
}

func (p *envelopeV1) open(r *sealedRequest, a *answer, into room) (*opened, error) {
	e, err := envelope.Parse(a.body, int(min(p.maxAnswer, maxBytes)))
	if err != nil {
		return nil, envelopeError(err)
	}
	plaintext, err := openWith(&e, []*privateKey{r.key.privateKey}, nil, into)
	if err != nil {
		return nil, err
	}
	if !r.key.seen.add(sha256.Sum256(e.WrappedKey)) {
		clear(plaintext)
		return nil, fmt.Errorf("%w: this envelope was opened before", ErrReplay)
	}
	return &opened{plaintext: plaintext, processedAt: e.ProcessedAt}, nil
}

func (p *envelopeV1) failure(a *answer) error { return apiErrorFrom(a) }

// refused asks for the server's key again when the status is the one that an envelope for another key gets.
func (p *envelopeV1) refused(ctx context.Context, r *sealedRequest, err error) (bool, error) {
	if refusal, ok := errors.AsType[*APIError](err); !ok || refusal.StatusCode != http.StatusBadRequest {
		return false, nil
	}
	return p.server.refresh(ctx, r.server)
}

// fetchServerKey asks for the server's public key.
func fetchServerKey(ctx context.Context, rt http.RoundTripper, base *url.URL) ([]*PublicKey, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String()+pathPublicKey, nil)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: %w", err)
	}
	req.Header.Set("User-Agent", userAgent)
	a, err := exchange(rt, req, maxKeyText)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, apiErrorFrom(a)
	}
	key, err := ParsePublicKey(a.body)
	return []*PublicKey{key}, err
}

// setBearer puts an API key into a header, which takes a string: copies of it stay on the heap until they are reused.
func setBearer(h http.Header, key *Secret) error {
	return key.Use(func(b []byte) error {
		if err := validAPIKey(b); err != nil {
			return err
		}
		h.Set("Authorization", "Bearer "+string(b))
		return nil
	})
}

// validAPIKey refuses what could end a header line, or could not stand in one.
func validAPIKey(b []byte) error {
	if len(b) == 0 || len(b) > 4096 {
		return fmt.Errorf("%w: the API key has %d bytes, want 1 to 4096", ErrInvalidRequest, len(b))
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%w: the API key holds a control character, white space or non-ASCII", ErrInvalidRequest)
		}
	}
	return nil
}

// percentEncode escapes everything but letters, digits and "-_.~".
func percentEncode(b []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(b)), "+", "%20")
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return formatUUID(b)
}

func formatUUID(b [16]byte) string {
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

const maxSeen = 16384 // answers remembered; 1.3 MB when full

// seenAnswers remembers the wrapped keys of the last answers. The zero value is ready.
type seenAnswers struct {
	mu   sync.Mutex
	set  map[[32]byte]struct{}
	ring [][32]byte // in the order of arrival; overwritten from next on once full
	next int
}

// add reports whether id is new, and remembers it.
func (s *seenAnswers) add(id [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.set[id]; ok {
		return false
	}
	if s.set == nil {
		s.set = make(map[[32]byte]struct{})
	}
	if len(s.ring) < maxSeen {
		s.ring = append(s.ring, id)
	} else {
		delete(s.set, s.ring[s.next])
		s.ring[s.next] = id
		s.next = (s.next + 1) % maxSeen
	}
	s.set[id] = struct{}{}
	return true
}
