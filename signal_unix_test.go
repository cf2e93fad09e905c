// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package sealedchat

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const signalVariable = "SEALEDCHAT_TEST_SIGNAL" // what the child does

func say(text string) closerFunc {
	return func() error { fmt.Println(text); return errors.New("is ignored") }
}

// signalChild runs in the child: it prints "ready" once it listens, and would end by itself only after a minute.
func signalChild(how string) {
	hang := closerFunc(func() error { fmt.Println("hanging"); select {} })
	panics := closerFunc(func() error { panic("x") })
	switch how {
	case "closes":
		CloseOnSignal(say("one"), say("two"))
	case "hangs":
		CloseOnSignal(say("one"), hang, say("two"))
	case "panics":
		CloseOnSignal(panics, nil, say("two"))
	case "stopped":
		stop := CloseOnSignal(say("one"))
		stop()
		stop()
	case "defers": // main ends while the closing is under way
		began := make(chan struct{})
		stop := CloseOnSignal(closerFunc(func() error { close(began); time.Sleep(50 * time.Millisecond); return nil }), say("two"))
		fmt.Println("ready")
		<-began
		stop()
		os.Exit(3)
	case "listens":
		c := make(chan os.Signal, 4)
		signal.Notify(c, syscall.SIGTERM)
		CloseOnSignal(say("one"))
		fmt.Println("ready")
		<-c
		fmt.Println("heard")
		<-c
		fmt.Println("heard again")
		os.Exit(3)
	case "ignores":
		signal.Ignore(os.Interrupt)
		CloseOnSignal(say("one"))
		fmt.Println("ready")
		time.Sleep(200 * time.Millisecond) // SIGINT comes and does nothing
		os.Exit(3)
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
}

func TestCloseOnSignal(t *testing.T) {
	if how := os.Getenv(signalVariable); how != "" {
		signalChild(how)
		return
	}
	for _, c := range []struct {
		how     string
		signals []os.Signal
		said    string
		exit    int // of its own; -1: by the last signal
	}{
		{"closes", []os.Signal{syscall.SIGTERM}, "one two", -1},
		{"closes", []os.Signal{os.Interrupt}, "one two", -1},
		{"hangs", []os.Signal{syscall.SIGTERM, os.Interrupt}, "one hanging", -1},
		{"panics", []os.Signal{syscall.SIGTERM}, "two", -1},
		{"stopped", []os.Signal{syscall.SIGTERM}, "", -1},
		{"defers", []os.Signal{syscall.SIGTERM}, "two", -1},
		{"listens", []os.Signal{syscall.SIGTERM}, "heard one heard again|one heard heard again", 3},
		{"ignores", []os.Signal{os.Interrupt}, "", 3},
	} {
		t.Run(fmt.Sprint(c.how, c.signals), func(t *testing.T) {
			t.Parallel()
			for _, s := range c.signals {
				if c.how != "ignores" && signal.Ignored(s) {
					t.Skipf("%v is ignored here, and children inherit that", s)
				}
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCloseOnSignal$")
			cmd.Env = append(os.Environ(), signalVariable+"="+c.how)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := talk(t, cmd, out, c.signals)
			err = cmd.Wait()
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if last := c.signals[len(c.signals)-1]; c.exit < 0 && (!status.Signaled() || status.Signal() != last) || c.exit >= 0 && status.ExitStatus() != c.exit {
				t.Errorf("ended with %v", err)
			}
			if !slices.Contains(strings.Split(c.said, "|"), said) {
				t.Errorf("said %q, want %q", said, c.said)
			}
		})
	}
}

// talk sends the first signal when the child is ready, the second when it hangs, and returns what the child said after that.
func talk(t *testing.T, cmd *exec.Cmd, out io.Reader, signals []os.Signal) string {
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Text(); line {
		case "ready":
			if err := cmd.Process.Signal(signals[0]); err != nil {
				t.Error(err)
			}
		case "hanging":
			said = append(said, line)
			if err := cmd.Process.Signal(signals[1]); err != nil {
				t.Error(err)
			}
		default:
			said = append(said, line)
		}
	}
	return strings.Join(said, " ")
}
