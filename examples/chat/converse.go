// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const conversationHelp = `A line is a prompt; the model sees the conversation before it as well.
/help  this text
/quit  ends the program, and so do Ctrl-D and Ctrl-C
chat -h lists the flags: -stream, -system, -model and others.
`

const maxLine = 1 << 20 // bytes of one line of a conversation

// converse asks for prompts until /quit, the end of the input, or the end of ctx. It keeps the
// history.
func (p *chat) converse(ctx context.Context, o *options,
	client *sealedchat.SecureCompletionClient) error {
	fmt.Fprintln(p.stderr, "Type a prompt. /quit or Ctrl-D ends, /help says more.")
	reading, stop := context.WithCancel(ctx)
	defer stop()
	lines, readErr := p.lines(reading)
	history := o.history()
	for {
		fmt.Fprint(p.stderr, "> ")
		var line string
		var more bool
		select {
		case line, more = <-lines:
		case <-ctx.Done():
		}
		line = strings.TrimSpace(line)
		switch {
		case !more:
			fmt.Fprintln(p.stderr) // the prompt of the shell needs a line of its own
			if ctx.Err() == nil {
				return readErr()
			}
			return nil
		case line == "/quit":
			return nil
		case line == "/help":
			fmt.Fprint(p.stderr, conversationHelp)
			continue
		case line == "":
			continue
		}
		turn := append(history, sealedchat.UserMessage(line))
		answer, err := p.turn(ctx, o, client, turn)
		switch {
		case ctx.Err() != nil:
			fmt.Fprintln(p.stderr)
			return nil
		case isOutputError(err):
			return err
		case err != nil: // the history is as it was: the same prompt can be tried again
			text, _ := o.server.Explain(ctx, err)
			program.Fail(p.stderr, "chat", text)
			continue
		}
		history = append(turn, sealedchat.AssistantMessage(answer))
	}
}

func isOutputError(err error) bool {
	_, ok := errors.AsType[outputError](err)
	return ok
}

func (p *chat) turn(ctx context.Context, o *options, client *sealedchat.SecureCompletionClient,
	messages []sealedchat.Message) (string, error) {
	if err := checkPrompt(messages[len(messages)-1].Content); err != nil {
		return "", err
	}
	return p.ask(ctx, o, client, messages)
}

// lines reads standard input line by line. After it has closed the channel, err returns the reason.
func (p *chat) lines(ctx context.Context) (lines <-chan string, err func() error) {
	ch := make(chan string)
	scanner := bufio.NewScanner(p.stdin)
	scanner.Buffer(nil, maxLine)
	// after /quit or Ctrl-C it ends with the process: reading a terminal cannot be interrupted
	go func() {
		defer close(ch)
		for scanner.Scan() {
			select {
			case ch <- scanner.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, func() error {
		if err := scanner.Err(); err != nil {
			return fmt.Errorf("reading the prompt: %w", err)
		}
		return nil
	}
}
