// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// Variable is an environment variable that a program reads.
type Variable struct{ Name, Text string }

// Usage is what -h prints, besides the flags.
type Usage struct {
	Lines     []string // "chat [flags] [prompt]"
	Variables []Variable
}

// Print prints the usage and the flags of f, which may be nil.
func (u Usage) Print(w io.Writer, f *flag.FlagSet) {
	for _, line := range u.Lines {
		fmt.Fprintln(w, "usage: "+line)
	}
	if f != nil {
		f.SetOutput(w)
		f.PrintDefaults()
	}
	if len(u.Variables) > 0 {
		fmt.Fprintln(w, "environment:")
	}
	for _, v := range u.Variables {
		fmt.Fprintf(w, "  %s\n    \t%s\n", v.Name, v.Text)
	}
}

// Parse reads the flags of f from args. After -h, whose text goes to stderr, and after -version,
// whose text goes to stdout, it returns flag.ErrHelp: the program ends with status 0. Any other
// error is one of WrongInput.
func Parse(f *flag.FlagSet, args []string, u Usage, stdout, stderr io.Writer) error {
	f.SetOutput(io.Discard) // errors are printed in one place
	f.Usage = func() {}
	version := f.Bool("version", false, "print the version of this program")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		u.Print(stderr, f)
		return flag.ErrHelp
	case err != nil:
		return WrongInput("%w (see %s -h)", err, f.Name())
	case *version:
		name, _, _ := strings.Cut(f.Name(), " ")
		if _, err := fmt.Fprintln(stdout, Version(name)); err != nil {
			return err
		}
		return flag.ErrHelp
	}
	return nil
}

// Given returns the names of the flags that were on the command line.
func Given(f *flag.FlagSet) map[string]bool {
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return given
}

// Version is one line about the program with this name, from what Go wrote into the binary.
func Version(name string) string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		info = &debug.BuildInfo{}
	}
	set := make(map[string]string)
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	text := name + " (sealedchat) " + cmp.Or(info.Main.Version, "(devel)")
	if revision := set["vcs.revision"]; revision != "" {
		text += ", revision " + revision
		if set["vcs.modified"] == "true" {
			text += ", modified"
		}
	}
	return fmt.Sprintf("%s, %s %s/%s", text, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// List is a flag that may be repeated, and may be a list with commas.
type List []string

// String implements flag.Value.
func (l *List) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *List) Set(s string) error {
	*l = append(*l, strings.Split(s, ",")...)
	return nil
}

// CheckAddress refuses an address for a listener that has no port between 0 and 65535, and returns
// its host.
func CheckAddress(address string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", fmt.Errorf("%q: want a port from 0 to 65535, as in 127.0.0.1:8484", address)
	}
	return host, nil
}
