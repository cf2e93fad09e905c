// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"strings"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const maxConfigFile = 1 << 20 // bytes

// readConfig sets the flags of f that the lines of a file name, except those that were on the
// command line. A line is "name = value"; the value may stand in double quotes. Empty lines and
// lines that begin with # are skipped. A name stands once, except allow. The file is no place for
// secrets, so anybody may read it.
func readConfig(file string, f *flag.FlagSet) error {
	content, err := readAtMost(file, maxConfigFile)
	if err != nil {
		return program.WrongInput("-config: %w", err)
	}
	given, seen := program.Given(f), make(map[string]bool)
	number := 0
	for line := range bytes.Lines(content) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		name, value = strings.TrimSpace(name), unquote(strings.TrimSpace(value))
		fail := func(why string) error {
			return program.WrongInput("%s, line %d: %s", file, number, why)
		}
		switch {
		case !ok:
			return fail("want \"name = value\"")
		case name == "config" || name == "version" || f.Lookup(name) == nil:
			return fail("there is no \"" + name + "\"; -h lists the names")
		case seen[name] && name != "allow":
			return fail(name + " stands twice")
		}
		seen[name] = true
		if given[name] {
			continue
		}
		if err := f.Set(name, value); err != nil {
			return fail(name + ": " + err.Error())
		}
	}
	return nil
}

func unquote(value string) string {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		return value[1 : len(value)-1]
	}
	return value
}

func readAtMost(file string, limit int64) ([]byte, error) {
	if info, err := os.Stat(file); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New(file + " is not a regular file")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = errors.New(file + " is too large")
	}
	return content, err
}
