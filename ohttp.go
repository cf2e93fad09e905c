// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

const (
	pathChat = "/v1/chat/completions"

	maxPadding     = 1 << 20  // what a reader of binary HTTP takes
	maxAnswerChunk = 64 << 10 // four times what a gateway has to write at most

	// maxDateAge: within so much time, an answer that says that the request's date is wrong is
	// about the clocks.
	maxDateAge = 30 * time.Second
)

// ohttpProtocol is the client's end of Oblivious HTTP in chunks.
//
// A request's body is copied once on its way to net/http, and an answer's twice on its way back:
//
//  1. HTTPClient reads the SDK's body into memory, since all of it is checked before anything acts.
//     Chat makes the JSON there, and Complete seals from the caller's Secret: they copy nothing.
//  2. Sealing reads the content where it lies and writes ciphertext into the body that net/http
//     sends. Only what is at the edges of the content, a chunk each, is put together before.
//  3. Of an answer, net/http writes the ciphertext into a batch of chunks, or into the buffer of an
//     ohttp.Reader: it has no other way to hand it over. It is opened there, in place.
//  4. From there it goes to its place in the content, since the binary HTTP message has lengths
//     between its pieces. Both times it is within the cache. Whoever reads a stream gets it from
//     there.
type ohttpProtocol struct {
	url               string // of the gateway
	scheme, authority string
	keys              *KeyStore // whose sweeper clears what the work leaves behind
	server            *serverKey
	memory            *locked.Arena
	spare             *spareMemory // of the client
	padding           int
	maxAnswer         int64
	idle              time.Duration // between two pieces of an event stream
	base              *url.URL
	takeX25519        bool

	// ahead is by how many nanoseconds the gateway's clock is ahead of this one's, once the gateway
	// refused a date.
	ahead atomic.Int64
}

// spareMemory is what a client's calls use one after another, by use: the bodies of SDKs' requests,
// sealed requests, chunks of answers, and whole answers that an SDK has closed.
type spareMemory struct{ bodies, sealed, batches, answers httpx.Spare }

// ohttpCall is the client's half of one exchange.
type ohttpCall struct {
	*ohttp.Request
	tier     SecurityTier  // asked for
	safe     bool          // the method only reads: doing it twice does no harm
	sealedAt time.Time     // by this clock
	late     bool          // the gateway refused the request's date,
	ahead    time.Duration // and its clock was ahead by so much
}

func (p *ohttpProtocol) fetchKeys(ctx context.Context, rt http.RoundTripper) ([]*PublicKey, error) {
	keys, err := fetchConfigs(ctx, rt, p.url, time.Now)
	if err != nil || p.takeX25519 {
		return keys, err
	}
	return onlyXWing(keys)
}

func (p *ohttpProtocol) streams() bool { return true }

// route takes requests of any method and path.
func (p *ohttpProtocol) route(req *http.Request) (*plainRequest, *unrouted) {
	if e := req.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, &unrouted{http.StatusUnsupportedMediaType, "unsupported_content_encoding",
			"sealedchat: what is sealed has no content encoding; nothing was sent"}
	}
	method := methodOf(req)
	return &plainRequest{method: method, path: p.innerPath(method, req.URL),
		header: fieldsOfSDK(req.Header)}, nil
}

// innerPath is the path that the gateway serves. An SDK's base URL may repeat the path of
// Config.BaseURL, and often lacks /v1. A POST for a chat completion loses its query too, so that
// its checks need to know one path only.
func (p *ohttpProtocol) innerPath(method string, u *url.URL) string {
	path := u.EscapedPath()
	if rest, ok := strings.CutPrefix(path, p.base.EscapedPath()); ok &&
		strings.HasPrefix(rest, "/") {
		path = rest
	}
	if strings.HasSuffix(strings.TrimRight(path, "/"), "/chat/completions") {
		if path = pathChat; method == http.MethodPost {
			return path
		}
	}
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path
}

func (p *ohttpProtocol) warm(ctx context.Context) error {
	_, err := p.server.get(ctx)
	return err
}

const (
	mediaJSON   = "application/json"
	mediaEvents = "text/event-stream"

	mediaEventsUTF8 = mediaEvents + "; charset=utf-8"
)

// jsonFields are the fields of a request that carries JSON.
func jsonFields(accept string) []bhttp.Field {
	return []bhttp.Field{{Name: "content-type", Value: mediaJSON}, {Name: "accept", Value: accept}}
}

// seal seals a request of any kind for the server's key. Where the answer is wanted whole, it takes
// no notice of stream, like the servers of version 1.
func (p *ohttpProtocol) seal(ctx context.Context, in *plainRequest,
	o *callOptions) (*sealedRequest, error) {
	server, err := p.server.get(ctx)
	if err != nil {
		return nil, err
	}
	defer p.keys.store.Sweep() // the answer may take long
	var call *ohttp.Request
	var body []byte
	erase.Do(func() { call, body, err = p.sealMessage(server.config, in, o) })
	r := &sealedRequest{server: server, keys: p.keys}
	if call != nil {
		id := call.ID()
		r.payloadID, r.ohttp = chatjson.UUID([16]byte(id[:16])), &ohttpCall{
			Request: call, tier: o.tier, sealedAt: time.Now(),
			safe: in.method == http.MethodGet || in.method == http.MethodHead,
		}
	}
	if err == nil {
		r.sent = httpx.NewSent(p.spare.sealed.PutWiped, body)
		r.http, err = p.request(ctx, r.sent)
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// sealMessage makes the binary HTTP message and seals it, within erase.Do: all that reads content
// or copies it leaves some in registers. The content is sealed from where it lies into the body of
// the request: nothing of it is copied in between, except for up to two chunks. The caller closes
// the request, if there is one.
func (p *ohttpProtocol) sealMessage(config *ohttp.Config, in *plainRequest,
	o *callOptions) (call *ohttp.Request, body []byte, err error) {
	content := in.content
	if in.whole && !in.clean && chatjson.HasStreamMember(content) {
		cut, err := p.memory.Alloc(len(content))
		if err != nil {
			return nil, nil, err
		}
		defer cut.Destroy()
		content = chatjson.CutStream(cut.Bytes()[:0], content)
	}
	around, behind, err := p.encode(in, len(content), o)
	if err != nil {
		return nil, nil, err
	}
	defer around.Destroy()
	message := around.Bytes()
	// what is at both edges of the content is put together here
	edges, err := p.memory.Alloc(min(len(message)+len(content), ohttp.MaxChunk))
	if err != nil {
		return nil, nil, err
	}
	defer edges.Destroy()
	if call, err = ohttp.NewRequest(config); err == nil {
		body, err = call.SealParts(p.spare.sealed.Get(call.SealedSize(len(message)+len(content))),
			edges.Bytes(), message[:behind], content, message[behind:])
	}
	if err != nil {
		err = fmt.Errorf("sealedchat: sealing the request: %w", err)
	}
	return call, body, err
}

// request is what the world outside sees.
func (p *ohttpProtocol) request(ctx context.Context, body *httpx.Sent) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, nil)
	if err != nil {
		return nil, fmt.Errorf("sealedchat: sealing the request: %w", err)
	}
	body.Attach(req)
	httpx.Count(req) // what is sent again is the same ciphertext, which a gateway serves once
	req.Header = http.Header{
		"Content-Type":  {ohttp.TypeRequest},
		"Accept":        {ohttp.TypeResponse},
		"Cache-Control": {"no-store"},
		"Incremental":   {"?1"},
		"User-Agent":    {""}, // sends none
	}
	return req, nil
}

// encode makes the binary HTTP message around a content of so many bytes, in protected memory, and
// says how much of it stands before the content. The API key goes straight from one such memory to
// the other.
func (p *ohttpProtocol) encode(in *plainRequest, length int, o *callOptions) (_ *locked.Buffer,
	behind int, err error) {
	header := slices.Concat(in.header, []bhttp.Field{{Name: "date", Value: p.date()}})
	if o.tier != "" {
		header = append(header, bhttp.Field{Name: ohttp.HeaderTier, Value: string(o.tier)})
	}
	if o.apiKey == nil {
		return p.encodeWith(in, length, header)
	}
	var message *locked.Buffer
	err = o.apiKey.Use(func(key []byte) error {
		if err := httpx.ValidAPIKey(key); err != nil {
			return err
		}
		bearer, err := p.memory.Alloc(len("Bearer ") + len(key))
		if err != nil {
			return err
		}
		defer bearer.Destroy()
		value := append(append(bearer.Bytes()[:0], "Bearer "...), key...)
		// A string over memory that is about to go: it does not outlive the encoding, which copies
		// it.
		message, behind, err = p.encodeWith(in, length, append(header, bhttp.Field{
			Name: "authorization", Value: unsafe.String(&value[0], len(value))}))
		return err
	})
	return message, behind, err
}

func (p *ohttpProtocol) encodeWith(in *plainRequest, length int,
	header []bhttp.Field) (_ *locked.Buffer, behind int, err error) {
	most := 256 + len(in.method) + len(p.scheme) + len(p.authority) + len(in.path) + p.padding
	for _, f := range header {
		most += 16 + len(f.Name) + len(f.Value)
	}
	buffer, err := p.memory.Alloc(most)
	if err != nil {
		return nil, 0, err
	}
	message, behind, err := bhttp.AppendRequestAround(buffer.Bytes()[:0], &bhttp.Request{
		Method: in.method, Scheme: p.scheme, Authority: p.authority, Path: in.path, Header: header,
	}, length, p.padding)
	if err != nil {
		buffer.Destroy()
		return nil, 0, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	buffer.Narrow(0, len(message)) // which never outgrows the buffer: most is an upper bound
	return buffer, behind, nil
}

// date is the time by the gateway's clock, as far as that is known.
func (p *ohttpProtocol) date() string {
	return time.Now().Add(time.Duration(p.ahead.Load())).UTC().Format(http.TimeFormat)
}

// failure: nothing in the clear is the gateway's word.
func (p *ohttpProtocol) failure(a *httpx.Answer) error { return outerError(a.Status, a.Body) }

func outerError(status int, body []byte) *OuterError {
	e := &OuterError{StatusCode: status}
	e.unknownKey = status == http.StatusUnprocessableEntity &&
		problemTypeOf(body) == ohttp.ProblemKey
	_, e.Detail = errorDetail(body)
	return e
}

// problemTypeOf is the type of a problem document (RFC 9457), "" of anything else.
func problemTypeOf(body []byte) string {
	if !chatjson.ValidObject(body) {
		return ""
	}
	o, _ := chatjson.Pick(body, "type")
	return o.Text("type")
}

// resealHelps asks for the list of keys again when the gateway does not know the one that was used,
// and sets the clock after the gateway's when that refused the date, which is authentic. The former
// came in the clear: an attacker who ends TLS can say so of a request that they let through, so
// only a request that reads is sealed again.
func (p *ohttpProtocol) resealHelps(ctx context.Context, r *sealedRequest, err error) (bool,
	error) {
	if outer, ok := errors.AsType[*OuterError](err); ok {
		if !outer.unknownKey {
			return false, nil
		}
		changed, err := p.server.refresh(ctx, r.server)
		outer.KeyChanged = changed
		return changed && r.ohttp.safe, err
	}
	if !r.ohttp.late {
		return false, nil
	}
	before := time.Duration(p.ahead.Swap(int64(r.ohttp.ahead)))
	return (before - r.ohttp.ahead).Abs() > time.Second, nil
}

// openAnswer reads and decrypts a whole answer, and returns its content if the status inside is
// 200.
func (p *ohttpProtocol) openAnswer(ctx context.Context, r *sealedRequest, outside *http.Response,
	into hybrid.Alloc) (*opened, error) {
	if !httpx.HasType(outside.Header, ohttp.TypeResponse) {
		return nil, &OuterError{StatusCode: outside.StatusCode, Detail: "not a sealed answer"}
	}
	what := httpx.Describe(r.http)
	body, _, err := httpx.Open(outside, p.maxAnswer)
	if err != nil {
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		return nil, httpx.ExchangeError(ctx, what, err, true)
	}
	source := &sourceError{Reader: body}
	content, err := p.openWhole(r.ohttp, source, into)
	switch {
	case source.err != nil && !errors.Is(source.err, ErrTooLarge):
		return nil, httpx.ExchangeError(ctx, what, source.err, true)
	case source.err != nil:
		return nil, source.err
	case err != nil:
		return nil, err
	}
	return &opened{plaintext: content}, nil
}

// sourceError remembers why the stream below ended, other than by its end.
type sourceError struct {
	io.Reader
	err error
}

func (s *sourceError) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// openWhole reads and opens a whole message. It leaves the content at the beginning of the memory
// that into returned last, and nothing behind it.
func (p *ohttpProtocol) openWhole(call *ohttpCall, sealed io.Reader,
	into hybrid.Alloc) (content []byte, err error) {
	var done []func() // gives batches back
	defer func() {
		for _, f := range done {
			f()
		}
	}()
	whole := &ohttp.Whole{MaxChunk: maxAnswerChunk, Limit: p.maxAnswer, Grow: p.growSpare,
		Batch: func(size int) ([]byte, error) {
			b := p.spare.batches.Get(size)[:size]
			done = append(done, func() { p.spare.batches.Put(b) })
			return b, nil
		}}
	if into != nil {
		whole.Batch = func(size int) ([]byte, error) {
			b, err := p.memory.Alloc(size)
			if err != nil {
				return nil, err
			}
			done = append(done, b.Destroy)
			return b.Bytes(), nil
		}
		whole.Grow = func(b []byte, size int) ([]byte, error) { return p.growInto(into, b, size) }
	}
	var checked error
	whole.Look = func(in *bhttp.Response, content []byte) { checked = call.checkAnswer(in, content) }
	_, content, err = call.ReadWhole(sealed, whole)
	if err != nil {
		return nil, innerError(err)
	}
	if err = checked; err != nil {
		clear(content)
		return nil, err
	}
	return content, nil
}

// growSpare moves content into larger memory, that of an answer before if there is one.
func (p *ohttpProtocol) growSpare(content []byte, size int) ([]byte, error) {
	larger := p.spare.answers.Get(size)
	larger = larger[:cap(larger)]
	copy(larger, content)
	clear(content)
	return larger, nil
}

// growInto moves content into larger memory that into returns, which wipes what it returned before.
func (p *ohttpProtocol) growInto(into hybrid.Alloc, content []byte, size int) ([]byte, error) {
	if content == nil {
		return into(size)
	}
	between, err := p.memory.Alloc(len(content))
	if err != nil {
		return nil, err
	}
	defer between.Destroy()
	copy(between.Bytes(), content)
	larger, err := into(size)
	copy(larger, between.Bytes())
	return larger, err
}

// checkAnswer is the error of an authentic answer: of its status, or of its tier. Of content it
// keeps only the words of an error.
func (c *ohttpCall) checkAnswer(in *bhttp.Response, content []byte) error {
	header := httpx.HeaderOf(in.Header)
	if in.Status >= 200 && in.Status < 300 {
		return c.checkTier(header)
	}
	content = content[:min(len(content), httpx.MaxErrorBody)]
	// Without this the answer may be the upstream's, which has worked on the request whatever its
	// status says.
	unprocessed := header.Get(ohttp.HeaderProcessed) == "no"
	// And the gateway rightly refuses a copy that was held back until its date was over, although
	// it served the first one.
	if unprocessed && time.Since(c.sealedAt) < maxDateAge && in.Status == http.StatusBadRequest &&
		problemTypeOf(content) == ohttp.ProblemDate {
		if at, err := http.ParseTime(header.Get("Date")); err == nil {
			c.late, c.ahead = true, time.Until(at)
		}
	}
	err := newAPIError(in.Status, header, content, time.Now())
	// The upstream can set neither header.
	if !unprocessed && header.Get(ohttp.HeaderRefusedBy) != "gateway" {
		return newSealedError(err.StatusCode, err.RetryAfter, err.Code, err.Detail).keeping(content)
	}
	err.unprocessed = unprocessed
	return err
}

// checkTier: the gateway states its tier in every answer. Where it states none, nothing shows that
// the tier is high enough.
func (c *ohttpCall) checkTier(header http.Header) error {
	if c.tier != "" && SecurityTier(header.Get(hybrid.HeaderTier)).rank() < c.tier.rank() {
		return ErrTierDowngrade
	}
	return nil
}

// innerError gives errors of the sealed message this package's types.
func innerError(err error) error {
	format, malformed := errors.AsType[*bhttp.FormatError](err)
	switch {
	case errors.Is(err, ErrTooLarge):
		return err
	case errors.Is(err, ohttp.ErrDecryption):
		return ErrDecryption
	case errors.Is(err, ohttp.ErrTooLarge), errors.Is(err, bhttp.ErrTooLarge):
		return fmt.Errorf("%w: answer", ErrTooLarge)
	case malformed:
		return fmt.Errorf("%w: %s: %s", ErrEnvelope, format.Part, format.Reason)
	case errors.Is(err, ohttp.ErrTruncated):
		return &fault.TruncatedError{What: "no final chunk"}
	case errors.Is(err, bhttp.ErrTruncated):
		return &fault.TruncatedError{What: "the message ends early"}
	}
	return fmt.Errorf("%w: %w", ErrEnvelope, err)
}
