// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Fault is a way to break an exchange.
type Fault string

// The faults. After all but Pass, Delay and Slow the connection is closed.
const (
	Pass  Fault = "pass"
	Delay Fault = "delay" // passes some milliseconds later
	Slow  Fault = "slow"  // passes in small pieces with pauses

	ResetEarly     Fault = "reset early"      // before the request was read
	ResetInRequest Fault = "reset in request" // after its first bytes
	// after the target has answered; the client gets nothing of the answer
	ResetAfter Fault = "reset after"
	// no answer: the proxy closes its direction and continues to read
	HalfClose Fault = "half-close"
	Stall     Fault = "stall" // no answer, or half of it, until the client gives up

	Truncate      Fault = "truncate"       // the connection ends within the body
	TruncateReset Fault = "truncate reset" // the same with a reset
	HalfHeader    Fault = "half header"    // the connection ends within the header
	LongLength    Fault = "long length"    // Content-Length is larger than the body
	ShortLength   Fault = "short length"   // Content-Length is smaller than the body
	CutChunks     Fault = "cut chunks"     // chunked, without the last chunk
	BadChunks     Fault = "bad chunks"     // chunked, with an invalid length

	Garbage     Fault = "garbage"      // random bytes instead of an HTTP answer
	GarbageBody Fault = "garbage body" // 200 with random bytes
	Corrupt     Fault = "corrupt"      // one byte of the body is changed
	HTML        Fault = "html"         // a proxy's error page, with status 502 or 503
	HTML200     Fault = "html 200"     // a proxy's login page, with status 200
	Empty       Fault = "empty"        // 200 without a body
	// 200 with a chat.completion in the clear, whose text is FaultText
	Plaintext Fault = "plaintext"
	Status    Fault = "status" // an error status in JSON: 400, 401, 429, 500 or 504
	Replay    Fault = "replay" // the answer to an earlier POST, if there was one
)

// FaultText is the text of an answer that a [FaultProxy] makes up. No client may accept it as an
// answer.
const FaultText = "FAULT-PROXY-TEXT-c61b"

var allFaults = []Fault{
	Delay, Slow, ResetEarly, ResetInRequest, ResetAfter, HalfClose, Stall, Truncate, TruncateReset,
	HalfHeader, LongLength,
	ShortLength, CutChunks, BadChunks, Garbage, GarbageBody, Corrupt, HTML, HTML200, Empty,
	Plaintext, Status, Replay,
}

// FaultKinds is the number of faults, Pass included, that a [FaultProxy] without a script chooses
// from.
var FaultKinds = len(allFaults) + 1

// FaultProxy is an HTTP/1.1 proxy on loopback that breaks some of the exchanges. mu guards faults
// and last.
type FaultProxy struct {
	target string
	seed   uint64
	script []Fault
	srv    *tcpServer
	http   *http.Client

	mu     sync.Mutex
	faults []Fault
	last   *faultAnswer // to a POST, with status 200
}

// faultAnswer is the answer of the target, or one that the proxy makes up.
type faultAnswer struct {
	status int
	header http.Header
	body   []byte
}

// NewFaultProxy starts a proxy in front of targetAddr (host:port), and stops it when the test ends.
// The nth exchange gets the nth fault of the script; after the script, exchanges pass. Without a
// script, four exchanges in ten pass, and the others get a fault at random. The fault of the nth
// exchange depends on seed and n alone.
func NewFaultProxy(t testing.TB, targetAddr string, seed uint64, script ...Fault) *FaultProxy {
	t.Helper()
	p := &FaultProxy{target: targetAddr, seed: seed, script: script, srv: listenTCP(t)}
	p.http = &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	p.srv.serve(p.relay)
	return p
}

// Addr is the host:port that clients connect to.
func (p *FaultProxy) Addr() string { return p.srv.Addr() }

// Close stops the proxy before the test ends. It is idempotent.
func (p *FaultProxy) Close() { p.srv.close() }

// Faults returns the fault of each exchange so far.
func (p *FaultProxy) Faults() []Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.faults)
}

// next chooses the fault of the next exchange.
func (p *FaultProxy) next() (Fault, *rand.Rand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.faults)
	r := rand.New(rand.NewPCG(p.seed, uint64(n)))
	fault := Pass
	switch {
	case n < len(p.script):
		fault = p.script[n]
	case p.script == nil && r.IntN(10) >= 4:
		fault = allFaults[r.IntN(len(allFaults))]
	}
	p.faults = append(p.faults, fault)
	return fault, r
}

// relay serves the exchanges on one connection.
func (p *FaultProxy) relay(client net.Conn) {
	in := bufio.NewReader(client)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		fault, r := p.next()
		if !p.exchange(client, in, fault, r) {
			return
		}
	}
}

// exchange handles one exchange, and reports whether the connection stays open.
func (p *FaultProxy) exchange(client net.Conn, in *bufio.Reader, fault Fault, r *rand.Rand) bool {
	switch fault {
	case ResetEarly:
		return reset(client)
	case ResetInRequest:
		_, _ = io.CopyN(io.Discard, in, int64(1+r.IntN(100)))
		return reset(client)
	}
	req, err := http.ReadRequest(in)
	if err != nil {
		return false
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return false
	}
	switch fault {
	case HalfClose:
		return halfClose(client, in)
	case Delay:
		time.Sleep(time.Duration(1+r.IntN(20)) * time.Millisecond)
	}
	answer := madeUp(fault, r)
	if answer == nil {
		if answer, err = p.forward(req, body); err != nil {
			return false
		}
		answer = p.replay(req, answer, fault)
	}
	return respond(client, in, answer, fault, r)
}

func reset(client net.Conn) bool {
	if c, ok := client.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	client.Close()
	return false
}

func halfClose(client net.Conn, in *bufio.Reader) bool {
	if c, ok := client.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, in)
	return false
}

// madeUp returns the answer that the proxy makes up without the target, or nil if the fault needs
// the target.
func madeUp(fault Fault, r *rand.Rand) *faultAnswer {
	answer := func(status int, contentType, body string) *faultAnswer {
		return &faultAnswer{status: status, header: http.Header{"Content-Type": {contentType}},
			body: []byte(body)}
	}
	page := "<!DOCTYPE html><html><body><h1>" + FaultText + "</h1></body></html>"
	switch fault {
	case HTML:
		return answer([]int{502, 503}[r.IntN(2)], "text/html", page)
	case HTML200:
		return answer(200, "text/html", page)
	case Empty:
		return answer(200, "application/octet-stream", "")
	case Garbage, GarbageBody:
		b := make([]byte, r.IntN(4000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return answer(200, "application/octet-stream", string(b))
	case Plaintext:
		return answer(200, "application/json",
			`{"id":"x","object":"chat.completion","created":1,"model":"x","choices":[`+
				`{"index":0,"message":{"role":"assistant","content":"`+FaultText+`"},`+
				`"finish_reason":"stop"}]}`)
	case Status:
		return answer([]int{400, 401, 429, 500, 504}[r.IntN(5)], "application/json",
			`{"detail":"`+FaultText+`"}`)
	}
	return nil
}

// forward sends the request to the target.
func (p *FaultProxy) forward(req *http.Request, body []byte) (*faultAnswer, error) {
	out, err := http.NewRequest(req.Method, "http://"+p.target+req.URL.RequestURI(),
		bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	out.Header = req.Header
	resp, err := p.http.Do(out)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer := &faultAnswer{status: resp.StatusCode, header: resp.Header}
	if answer.body, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	return answer, nil
}

// replay keeps the answers of POSTs, and for the fault Replay returns the one before.
func (p *FaultProxy) replay(req *http.Request, answer *faultAnswer, fault Fault) *faultAnswer {
	if req.Method != http.MethodPost || answer.status != http.StatusOK {
		return answer
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	earlier := p.last
	p.last = answer
	if fault == Replay && earlier != nil {
		return earlier
	}
	return answer
}

// respond writes the answer, broken by the fault.
func respond(client net.Conn, in *bufio.Reader, a *faultAnswer, fault Fault, r *rand.Rand) bool {
	body, length := a.body, strconv.Itoa(len(a.body))
	cut := r.IntN(len(body) + 1)
	switch fault {
	case Garbage:
		_, _ = client.Write(body)
		return false
	case ResetAfter:
		return reset(client)
	case Corrupt:
		body = bytes.Clone(body)
		if len(body) > 0 {
			body[r.IntN(len(body))] ^= byte(1 + r.IntN(255))
		}
	case LongLength:
		length = strconv.Itoa(len(body) + 1 + r.IntN(1000))
	case ShortLength:
		length = strconv.Itoa(cut)
	case CutChunks, BadChunks:
		length = ""
	}
	head := header(a, length, fault == ShortLength)
	if fault == HalfHeader {
		_, _ = client.Write(head[:r.IntN(len(head))])
		return false
	}
	_, _ = client.Write(head)
	switch fault {
	case Stall:
		_, _ = client.Write(body[:cut])
		_, _ = io.Copy(io.Discard, in)
		return false
	case Truncate, TruncateReset:
		_, _ = client.Write(body[:min(cut, max(len(body)-1, 0))])
		return fault == TruncateReset && reset(client)
	case CutChunks:
		fmt.Fprintf(client, "%x\r\n%s\r\n", len(body), body)
		return false
	case BadChunks:
		fmt.Fprintf(client, "%x\r\n%s\r\nxyz\r\n", len(body[:cut]), body[:cut])
		return false
	case Slow:
		piece := len(body)/20 + 1
		for chunk := range slices.Chunk(body, piece) {
			_, _ = client.Write(chunk)
			time.Sleep(time.Millisecond)
		}
		return true
	}
	_, err := client.Write(body)
	return err == nil && (fault == Pass || fault == Delay)
}

// header returns the status line and the header of the answer. With length "" the body is chunked.
// last announces that the connection will close.
func header(a *faultAnswer, length string, last bool) []byte {
	h := a.header.Clone()
	for _, name := range []string{"Content-Length", "Connection", "Transfer-Encoding"} {
		h.Del(name)
	}
	if length == "" {
		h.Set("Transfer-Encoding", "chunked")
	} else {
		h.Set("Content-Length", length)
	}
	if last { // otherwise net/http logs the bytes after the answer
		h.Set("Connection", "close")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	_ = h.Write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}
