// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package program holds what the programs below examples/ have in common, so that they are used in
// one way: flags, -h with exit status 0, -version, wrong input with exit status 2 and one line,
// secrets from files and the environment, certificates, and the line that names a pin.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
)

// The exit statuses that all programs have.
const (
	StatusFailed = 1
	StatusUsage  = 2
)

// Signals returns a context that ends with Ctrl-C or SIGTERM. A second signal ends the program at
// once.
func Signals() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}

// usageError is wrong input.
type usageError struct{ error }

// Unwrap gives errors.Is what the input was wrong about.
func (e usageError) Unwrap() error { return e.error }

// WrongInput is an error that ends a program with StatusUsage. It takes the arguments of
// fmt.Errorf.
func WrongInput(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// IsWrongInput reports whether WrongInput made err.
func IsWrongInput(err error) bool {
	_, ok := errors.AsType[usageError](err)
	return ok
}

// Explain turns an error into one line for the user, and an exit status. fields names the flag or
// the variable behind a field of the package's options: "Config.Trust" is "-pin" for example.
func Explain(err error, fields map[string]string) (text string, status int) {
	text = strings.ReplaceAll(err.Error(), "sealedchat: ", "")
	if IsWrongInput(err) {
		return text, StatusUsage
	}
	if wrong, ok := errors.AsType[*sealedchat.ConfigError](err); ok {
		if name := fields[wrong.Field]; name != "" {
			text = name + ": " + strings.ReplaceAll(wrong.Err.Error(), "sealedchat: ", "")
		}
		for field, name := range fields { // what the text tells to set
			_, short, _ := strings.Cut(field, ".")
			text = strings.ReplaceAll(text, "set "+short+" ", "give "+name+" ")
		}
		return text, StatusUsage
	}
	return text, StatusFailed
}

// Exit returns the exit status of a program that ended with err: 0 for nil and for flag.ErrHelp.
// For any other error it prints the line of explain, with the name of the program before it.
func Exit(w io.Writer, name string, err error, explain func(error) (text string, status int)) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	text, status := explain(err)
	Fail(w, name, text)
	return status
}

// Fail prints the line of Explain, with the name of the program before it.
func Fail(w io.Writer, name, text string) { fmt.Fprintln(w, name+": "+OneLine(text)) }

// OneLine replaces characters that could end a line or control a terminal.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// PinLine is the line that names the key a client pins: "pin (ohttp): HEX".
func PinLine(protocol sealedchat.Protocol, fingerprint string) string {
	return fmt.Sprintf("pin (%s): %s", protocol, fingerprint)
}

// Pins returns what the clients of a gateway pin, by protocol: the fingerprint of the RSA key in
// use, and that of the key that signs the configurations of Oblivious HTTP, which outlives them.
// keys are those of Gateway.Keys, where the keys in use come first.
func Pins(keys []sealedchat.KeyInfo) map[sealedchat.Protocol]string {
	pins := make(map[sealedchat.Protocol]string)
	for _, k := range keys {
		protocol := sealedchat.ProtocolEnvelope
		switch {
		case k.Kind == "Ed25519":
			protocol = sealedchat.ProtocolOHTTP
		case k.Kind != "RSA", !k.Retired.IsZero():
			continue
		}
		if pins[protocol] == "" {
			pins[protocol] = k.Fingerprint
		}
	}
	return pins
}
