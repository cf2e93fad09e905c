// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// rustPeer is the program of the folder rust.
func rustPeer(t testing.TB) string {
	t.Helper()
	program := os.Getenv("SEALEDCHAT_RUST_PEER")
	if program == "" {
		t.Skip("SEALEDCHAT_RUST_PEER is not set: it names the program of the folder rust, built")
	}
	return program
}

// rustProcess is one exchange of the Rust program. Its standard input and output are frames.
type rustProcess struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
}

func startRust(t testing.TB, args ...string) *rustProcess {
	t.Helper()
	p := &rustProcess{t: t, cmd: exec.Command(rustPeer(t), args...)}
	p.cmd.Stderr = &p.err
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	return p
}

// Write makes a frame of b, which is not empty.
func (p *rustProcess) Write(b []byte) (int, error) {
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	_, err := p.in.Write(append(frame, b...))
	return len(b), err
}

// finish ends a message to the process.
func (p *rustProcess) finish() error {
	_, err := p.in.Write(make([]byte, 4))
	return err
}

// frame reads the next frame; of the empty one it is io.EOF. The process ended without it if there
// is another error: stop tells why.
func (p *rustProcess) frame() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(p.out, length[:]); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	if len(b) == 0 {
		return nil, io.EOF
	}
	if _, err := io.ReadFull(p.out, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// copyTo writes the frames of a message to w as they come.
func (p *rustProcess) copyTo(w io.Writer) error {
	for {
		b, err := p.frame()
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
}

// stop ends the process, unless it has ended. Its error is what the process wrote about its own
// failure.
func (p *rustProcess) stop() error {
	p.in.Close()
	io.Copy(io.Discard, p.out)
	if err := p.cmd.Wait(); err != nil {
		return errors.New(strings.TrimSpace(p.err.String()))
	}
	return nil
}

// rustAnswer is what the Rust client made of an answer.
type rustAnswer struct {
	status int
	header http.Header
	body   *rustBody
}

// rustBody reads the content of an answer. Its last error is io.EOF only if the program found the
// answer whole.
type rustBody struct {
	p    *rustProcess
	left []byte
	end  error
}

func (b *rustBody) Read(to []byte) (int, error) {
	if len(b.left) == 0 && b.end == nil {
		if b.left, b.end = b.p.frame(); b.end != nil {
			if err := b.p.stop(); err != nil {
				b.end = err
			}
		}
	}
	if b.end != nil {
		return 0, b.end
	}
	n := copy(to, b.left)
	b.left = b.left[n:]
	return n, nil
}

// head is the frame of lines of a message.
func head(first []string, header http.Header) []byte {
	var text strings.Builder
	for _, line := range first {
		fmt.Fprintln(&text, line)
	}
	for name, values := range header {
		for _, value := range values {
			fmt.Fprintf(&text, "%s: %s\n", strings.ToLower(name), value)
		}
	}
	return []byte(text.String())
}

// fields is the other way round.
func fields(lines []string) http.Header {
	header := http.Header{}
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, ": "); ok {
			header.Add(name, value)
		}
	}
	return header
}

// rustClient asks a gateway over HTTP, with the Rust program.
type rustClient struct {
	url     string // with the path
	list    []byte // of configurations
	mode    string // "whole" or "pieces"
	request tamper // nil: none
	answer  tamper // nil: none
}

// outerError is an answer that was not sealed.
type outerError struct {
	status int
	text   string
}

func (e *outerError) Error() string { return fmt.Sprintf("status %d outside: %s", e.status, e.text) }

// ask sends a request with the given pieces of content.
func (c *rustClient) ask(t testing.TB, method, path string, header http.Header,
	pieces ...[]byte) (*rustAnswer, error) {
	t.Helper()
	p := startRust(t, "ask", c.mode, hex.EncodeToString(c.list))
	go func() {
		p.Write(head([]string{method, "https", "a.example", path}, header))
		for _, piece := range pieces {
			p.Write(piece)
		}
		p.finish()
	}()
	sealed, body := io.Pipe()
	go func() { body.CloseWithError(p.copyTo(body)) }()
	var content io.Reader = sealed
	if c.request != nil {
		all, err := io.ReadAll(sealed)
		if err != nil {
			if said := p.stop(); said != nil {
				err = said
			}
			return nil, err
		}
		content = bytes.NewReader(c.request(all))
	}
	response, err := http.Post(c.url, ohttp.TypeRequest, content)
	if err != nil {
		p.stop()
		return nil, err
	}
	if got := response.Header.Get("Content-Type"); got != ohttp.TypeResponse {
		defer response.Body.Close()
		p.stop()
		text, _ := io.ReadAll(response.Body)
		return nil, &outerError{response.StatusCode, string(text)}
	}
	go func() {
		defer response.Body.Close()
		if c.answer != nil {
			all, err := io.ReadAll(response.Body)
			if err != nil {
				t.Error(err)
			}
			p.Write(c.answer(all))
		} else {
			buffer := make([]byte, 1<<15)
			for {
				n, err := response.Body.Read(buffer)
				if n > 0 {
					p.Write(buffer[:n])
				}
				if err != nil {
					break
				}
			}
		}
		p.finish()
	}()
	text, err := p.frame()
	if err != nil {
		if err := p.stop(); err != nil {
			return nil, err
		}
		return nil, err
	}
	lines := strings.Split(string(text), "\n")
	status, err := strconv.Atoi(lines[0])
	return &rustAnswer{status, fields(lines[1:]), &rustBody{p: p}}, err
}

// rustGateway is a gateway over HTTP that opens and seals with the Rust program.
type rustGateway struct {
	t       *testing.T
	kem     uint16
	id      string // of the key that it lists
	opens   string // the id of the key that it opens with; "" = id
	mode    string
	handler http.Handler
	request tamper // nil: none
	answer  tamper // nil: none

	mu      sync.Mutex
	refused []string // what the program said of requests that it did not take
}

const rustSeed = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"

func (g *rustGateway) key(id string) []string {
	return []string{strconv.FormatUint(uint64(g.kem), 16), id, rustSeed}
}

// list is the list of its only configuration.
func (g *rustGateway) list() []byte {
	text, err := exec.Command(rustPeer(g.t), append([]string{"keys"}, g.key(g.id)...)...).Output()
	if err != nil {
		g.t.Fatal(err)
	}
	config, err := hex.DecodeString(string(text))
	if err != nil {
		g.t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

func (g *rustGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Type", ohttp.TypeKeys)
		w.Write(g.list())
		return
	}
	id := g.id
	if g.opens != "" {
		id = g.opens
	}
	p := startRust(g.t, append([]string{"answer", g.mode}, g.key(id)...)...)
	go func() {
		sealed, _ := io.ReadAll(r.Body)
		if g.request != nil {
			sealed = g.request(sealed)
		}
		p.Write(sealed)
		p.finish()
	}()
	inner, err := g.open(p)
	if err != nil {
		g.mu.Lock()
		g.refused = append(g.refused, err.Error())
		g.mu.Unlock()
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		io.WriteString(w, `{"type":"`+ohttp.ProblemKey+`"}`)
		return
	}
	w.Header().Set("Content-Type", ohttp.TypeResponse)
	done := make(chan error)
	go func() {
		if g.answer == nil {
			done <- p.copyTo(flusher{w})
			return
		}
		var sealed bytes.Buffer
		err := p.copyTo(&sealed)
		w.Write(g.answer(sealed.Bytes()))
		done <- err
	}()
	inside := &rustWriter{p: p, header: http.Header{}}
	g.handler.ServeHTTP(inside, inner.WithContext(r.Context()))
	inside.WriteHeader(http.StatusOK)
	p.finish()
	if err := errors.Join(<-done, p.stop()); err != nil {
		g.t.Error(err)
	}
}

// open reads the opened request.
func (g *rustGateway) open(p *rustProcess) (*http.Request, error) {
	text, err := p.frame()
	var content bytes.Buffer
	if err == nil {
		err = p.copyTo(&content)
	}
	if err != nil {
		if said := p.stop(); said != nil {
			err = said
		}
		return nil, err
	}
	lines := strings.Split(string(text), "\n")
	r, err := http.NewRequest(lines[0], lines[1]+"://"+lines[2]+lines[3], &content)
	if err == nil {
		r.Header = fields(lines[4:])
	}
	return r, err
}

// rustWriter hands an answer to the program.
type rustWriter struct {
	p      *rustProcess
	header http.Header
	begun  bool
}

func (w *rustWriter) Header() http.Header { return w.header }
func (w *rustWriter) Flush()              {}

func (w *rustWriter) WriteHeader(status int) {
	if !w.begun {
		w.begun = true
		w.p.Write(head([]string{strconv.Itoa(status)}, w.header))
	}
}

func (w *rustWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if len(b) == 0 {
		return 0, nil
	}
	return w.p.Write(b)
}

// flusher sends every piece at once.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	f.w.(http.Flusher).Flush()
	return n, err
}
