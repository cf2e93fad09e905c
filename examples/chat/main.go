// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command chat sends a prompt in a sealed envelope and prints the answer.
//
//	go run ./examples/chat "What is the capital of France?"   # a demo: no server, no download
//	go run ./examples/chat -show-wire "What is the capital of France?"
//
//	# words appear as they arrive
//	go run ./examples/chat -protocol ohttp -stream "What is the capital of France?"
//
//	echo "Summarise this." | go run ./examples/chat -url https://api.nomyo.ai -model MODEL
//	go run ./examples/chat -url https://127.0.0.1:8443 -cacert gateway.pem -pin HEX -model MODEL
//
// Without -url (and without NOMYO_SERVER_URL) it starts a TLS gateway with a tiny demo model inside
// its own process, and talks to it like to any other server. It takes the prompt from the
// arguments, or else from standard input. On a terminal without a prompt it starts a small
// conversation, which /quit or Ctrl-D ends; /help says what else there is.
//
// Only the answer goes to standard output, all other text goes to standard error. Environment:
// NOMYO_API_KEY is the API key for the server, or NOMYO_API_KEY_FILE names a file with it;
// NOMYO_SERVER_URL and NOMYO_SERVER_PIN replace -url and -pin. Exit status: 0 for success, 1 if
// there is no answer, 2 for wrong input.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	os.Exit(run(program.Signals(), os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout,
	stderr io.Writer) int {
	p := &chat{env: env, stdin: stdin, stdout: stdout, stderr: stderr, isTerminal: isTerminal,
		patience: 300 * time.Millisecond}
	return p.run(ctx, args)
}

// chat has the surroundings of a run, which tests replace.
type chat struct {
	env            func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
	isTerminal     func(stream any) bool
	keyBits        int           // of generated RSA keys; 0 = 4096
	maxRetries     int           // as in sealedchat.Config
	patience       time.Duration // before a note says what the program waits for
}

func (p *chat) run(ctx context.Context, args []string) int {
	p.stderr = &lockedWriter{w: p.stderr}
	o, err := p.parse(args)
	if err == nil {
		err = p.readPrompt(ctx, o)
	}
	if err == nil {
		err = p.talk(ctx, o)
	}
	return program.Exit(p.stderr, "chat", err, func(err error) (string, int) {
		return o.server.Explain(ctx, err)
	})
}

// talk connects to the server, or to the demo, and asks.
func (p *chat) talk(ctx context.Context, o *options) error {
	// the store makes its key when one is needed
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: p.keyBits})
	if err != nil {
		return err
	}
	defer keys.Close()
	apiKey, err := program.Secret(p.env, "NOMYO_API_KEY")
	if err != nil {
		return err
	}
	if o.demo {
		apiKey.Destroy()
		d, err := p.startDemo(ctx, o, keys)
		if err != nil {
			return err
		}
		defer d.Close()
		o.server = d.Server(o.server)
		apiKey = sealedchat.NewSecret([]byte(d.APIKey))
	}
	defer apiKey.Destroy()
	client, done, err := p.connect(o, apiKey, keys)
	if err != nil {
		return err
	}
	defer done()

	// Chat would do all this by itself. Doing it first makes the key of the client, if the protocol
	// has one, while the key of the server is on its way.
	ready := p.while("getting ready …")
	err = client.Warm(ctx)
	ready()
	if err != nil {
		return err
	}
	if o.prompt == "" {
		return p.converse(ctx, o, client)
	}
	_, err = p.ask(ctx, o, client, append(o.history(), sealedchat.UserMessage(o.prompt)))
	return err
}

// ask sends the messages, prints the text of the answer and returns it.
func (p *chat) ask(ctx context.Context, o *options, client *sealedchat.SecureCompletionClient,
	messages []sealedchat.Message) (string, error) {
	request := &sealedchat.ChatRequest{Model: o.model, Messages: messages}
	var resp *sealedchat.ChatResponse
	var err error
	if o.stream {
		resp, err = p.stream(ctx, client, request)
	} else {
		waiting := p.while("waiting for the answer …")
		resp, err = client.Chat(ctx, request)
		waiting()
	}
	if err != nil {
		return "", err
	}
	finish := ""
	if len(resp.Choices) > 0 {
		finish = resp.Choices[0].FinishReason
	}
	if resp.Text() == "" {
		return "", fmt.Errorf("the answer has no text (finish reason %q)", program.OneLine(finish))
	}
	if finish == "length" {
		fmt.Fprintln(p.stderr, "chat: the answer was cut off at the token limit")
	}
	if o.stream {
		return resp.Text(), nil // stream has printed it
	}
	return resp.Text(), p.print(resp.Text() + "\n")
}

// stream prints an answer piece by piece as it arrives.
func (p *chat) stream(ctx context.Context, client *sealedchat.SecureCompletionClient,
	request *sealedchat.ChatRequest) (_ *sealedchat.ChatResponse, err error) {
	waiting := sync.OnceFunc(p.while("waiting for the answer …"))
	defer waiting()
	var answer sealedchat.ChatAccumulator
	begun := false
	defer func() {
		if begun {
			err = cmp.Or(err, p.print("\n"))
		}
	}()
	for chunk, err := range client.Stream(ctx, request) {
		waiting()
		if err != nil {
			return nil, err
		}
		answer.Add(chunk)
		if chunk.Text() == "" {
			continue
		}
		begun = true
		if err := p.print(chunk.Text()); err != nil {
			return nil, err
		}
	}
	return answer.Response(), nil
}

// outputError is an error of standard output and not of the server.
type outputError struct{ error }

// print writes text to standard output. A terminal gets no control sequences from a server.
func (p *chat) print(text string) error {
	if p.isTerminal(p.stdout) {
		text = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) && r != '\n' && r != '\t' {
				return -1
			}
			return r
		}, text)
	}
	if _, err := io.WriteString(p.stdout, text); err != nil {
		return outputError{fmt.Errorf("writing the answer: %w", err)}
	}
	return nil
}

// while prints a note, unless the function that it returns is called soon.
func (p *chat) while(note string) (done func()) {
	end := make(chan struct{})
	var printer sync.WaitGroup
	printer.Go(func() {
		select {
		case <-end:
		case <-time.After(p.patience):
			fmt.Fprintln(p.stderr, note)
		}
	})
	return func() {
		close(end)
		printer.Wait()
	}
}

// isTerminal reports whether stream is a character device, except the null device.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// lockedWriter lets several goroutines print: notes, the wire and the program itself.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
