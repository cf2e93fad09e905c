// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"flag"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const maxPrompt = 10 << 20 // bytes: the limit of a client by default, and more than any model reads

// options are the checked command line and environment.
type options struct {
	demo     bool
	server   program.Server
	model    string
	system   string
	prompt   string // "" = a conversation
	showWire bool
	stream   bool
}

// usage is what -h prints, besides the flags.
func usage() program.Usage {
	return program.Usage{Lines: []string{"chat [flags] [prompt]"},
		Variables: program.ServerVariables()}
}

func (p *chat) parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("chat", flag.ContinueOnError)
	o.server.Flags(f, sealedchat.ProtocolEnvelope)
	f.StringVar(&o.model, "model", "", "the model's `name`; required with -url")
	f.StringVar(&o.system, "system", "", "instructions for the model (a system message): `text`")
	f.BoolVar(&o.stream, "stream", false,
		"print the answer as it arrives; with -protocol envelope it arrives all at once")
	f.BoolVar(&o.showWire, "show-wire", false, "print what an observer of the HTTP traffic sees")
	if err := program.Parse(f, args, usage(), p.stdout, p.stderr); err != nil {
		return o, err
	}
	if err := flagAfterPrompt(f, args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		if o.prompt = strings.Join(f.Args(), " "); strings.TrimSpace(o.prompt) == "" {
			return o, program.WrongInput("the prompt is empty")
		}
	}
	if err := o.server.Check(f, p.env); err != nil {
		return o, err
	}
	if o.demo = o.server.URL == ""; o.demo {
		o.model = cmp.Or(o.model, demo.Name)
	}
	if o.model == "" {
		return o, program.WrongInput("-model is required with %s", o.server.URLFrom)
	}
	return o, nil
}

// flagAfterPrompt refuses flags that package flag takes for words of the prompt.
func flagAfterPrompt(f *flag.FlagSet, args []string) error {
	words := f.Args()
	if before := len(args) - len(words); before > 0 && args[before-1] == "--" {
		return nil
	}
	for _, word := range words {
		name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if strings.HasPrefix(word, "-") && f.Lookup(name) != nil {
			return program.WrongInput("-%s has to stand before the prompt", name)
		}
	}
	return nil
}

// readPrompt reads the prompt from standard input, unless the arguments have it or a terminal will
// be asked for it. It does not read standard input if the arguments have a prompt: the input may be
// anything, and may never end.
func (p *chat) readPrompt(ctx context.Context, o *options) error {
	if o.prompt == "" {
		if p.isTerminal(p.stdin) {
			return nil
		}
		text, err := p.readAll(ctx)
		if err != nil {
			return err
		}
		if o.prompt = strings.TrimRight(text, "\r\n"); strings.TrimSpace(o.prompt) == "" {
			return program.WrongInput("no prompt: give one as an argument or on standard input (see -h)")
		}
	}
	return checkPrompt(o.prompt)
}

// checkPrompt refuses a prompt that is too long or not UTF-8.
func checkPrompt(s string) error {
	if len(s) > maxPrompt {
		return program.WrongInput("the prompt has more than %s bytes", thousands(maxPrompt))
	}
	if !utf8.ValidString(s) {
		return program.WrongInput("the prompt is not UTF-8 text")
	}
	return nil
}

// readAll reads standard input until its end or the end of ctx, and a little more of it than the
// program accepts.
func (p *chat) readAll(ctx context.Context) (string, error) {
	type result struct {
		text []byte
		err  error
	}
	read := make(chan result, 1)
	go func() { // after a Ctrl-C it ends with the process: reading cannot be interrupted
		text, err := io.ReadAll(io.LimitReader(p.stdin, maxPrompt+3))
		read <- result{text, err}
	}()
	select {
	case r := <-read:
		if r.err != nil {
			return "", program.WrongInput("reading the prompt: %w", r.err)
		}
		return string(r.text), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// history returns the first messages of a conversation.
func (o *options) history() []sealedchat.Message {
	if o.system == "" {
		return nil
	}
	return []sealedchat.Message{sealedchat.SystemMessage(o.system)}
}
