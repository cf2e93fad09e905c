// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const maxLabel = 1024 // bytes, as in sealedchat.KeyStore.Seal

// command is a command of the program.
type command struct {
	name, synopsis string
	flags          string // names of its flags, except -keys
	file           int    // how many files it has: none, at most one, or exactly one
	run            func(p *keystore, ctx context.Context, o *options) error
}

const (
	noFile = iota
	mayHaveFile
	wantsFile
)

func commands() []command {
	return []command{
		{"create", "create [-keys DIR] [-bits N] [-iterations N]", "bits iterations", noFile,
			(*keystore).create},
		{"list", "list [-keys DIR]", "", noFile, (*keystore).list},
		{"next", "next [-keys DIR] [-bits N]", "bits", noFile, (*keystore).next},
		{"rotate", "rotate [-keys DIR] [-bits N]", "bits", noFile, (*keystore).rotate},
		{"delete", "delete [-keys DIR] -fingerprint HEX", "fingerprint", noFile,
			(*keystore).deleteKey},
		{"import", "import [-keys DIR] FILE", "", wantsFile, (*keystore).importKey},
		{"export", "export [-keys DIR] [-fingerprint HEX] -out FILE", "fingerprint out", noFile,
			(*keystore).exportKey},
		{"passwd", "passwd [-keys DIR] [-iterations N]", "iterations", noFile, (*keystore).passwd},
		{"seal", "seal [-keys DIR] -label TEXT [FILE] > OUTPUT", "label", mayHaveFile,
			(*keystore).seal},
		{"open", "open [-keys DIR] -label TEXT [FILE] > OUTPUT", "label", mayHaveFile,
			(*keystore).open},
	}
}

// variables are what the program reads from the environment.
func variables() []program.Variable {
	const orFile = "; with _FILE behind its name, a file with it"
	return []program.Variable{
		{Name: "NOMYO_KEY_DIR", Text: "replaces -keys"},
		{Name: storePassword, Text: "the passphrase of the key store" + orFile},
		{Name: newStorePassword, Text: "the new one, of passwd" + orFile},
		{Name: filePassword, Text: "the passphrase of the file, of import and export" + orFile},
	}
}

// options are the checked command line.
type options struct {
	command     command
	dir         string
	bits        int    // 0 = the package's default
	iterations  int    // 0 = the package's default
	fingerprint string // "" = the primary key, for export
	out         string
	label       string
	file        string // "" = standard input
}

func (p *keystore) parse(args []string) (*options, error) {
	if len(args) == 0 {
		return nil, program.WrongInput("no command, want %s (see -h)", names())
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		usage := program.Usage{Variables: variables()}
		for _, c := range commands() {
			usage.Lines = append(usage.Lines, "keystore "+c.synopsis)
		}
		usage.Print(p.stderr, nil)
		return nil, flag.ErrHelp
	case "-version", "--version", "version":
		if _, err := fmt.Fprintln(p.stdout, program.Version("keystore")); err != nil {
			return nil, err
		}
		return nil, flag.ErrHelp
	}
	o := &options{}
	for _, c := range commands() {
		if c.name == args[0] {
			o.command = c
		}
	}
	if o.command.run == nil {
		return nil, program.WrongInput("unknown command %q, want %s (see -h)", args[0], names())
	}
	dir := p.env("NOMYO_KEY_DIR")
	if dir == "" {
		var err error
		if dir, err = defaultDir(); err != nil {
			return nil, program.WrongInput("give -keys or NOMYO_KEY_DIR: %w", err)
		}
	}
	f := o.flags(dir)
	usage := program.Usage{Lines: []string{"keystore " + o.command.synopsis},
		Variables: variables()}
	if err := program.Parse(f, args[1:], usage, p.stdout, p.stderr); err != nil {
		return nil, err
	}
	o.file = f.Arg(0)
	return o, o.check(f)
}

// flags defines the flags of the command.
func (o *options) flags(dir string) *flag.FlagSet {
	f := flag.NewFlagSet("keystore "+o.command.name, flag.ContinueOnError)
	f.StringVar(&o.dir, "keys", dir, "`folder` of the key store")
	for _, name := range strings.Fields(o.command.flags) {
		switch name {
		case "bits":
			f.IntVar(&o.bits, name, 4096, "`size` of the RSA key: 2048, 3072 or 4096")
		case "iterations":
			f.IntVar(&o.iterations, name, 600_000,
				"`number` of PBKDF2 iterations, up to 10,000,000: what a guess at the "+
					"passphrase costs")
		case "fingerprint":
			without := "default the primary key"
			if o.command.name == "delete" {
				without = "required"
			}
			f.StringVar(&o.fingerprint, name, "",
				"`fingerprint` of the key, as list shows it ("+without+")")
		case "out":
			f.StringVar(&o.out, name, "", "new `file` to write (required)")
		case "label":
			f.StringVar(&o.label, name, "",
				"`text` that says what the data is; it opens under the same one only (required)")
		}
	}
	return f
}

func (o *options) check(f *flag.FlagSet) error {
	c := o.command
	max := min(c.file, 1)
	switch {
	case f.NArg() > max:
		return program.WrongInput("%s: unexpected argument %q; flags come before the file (see "+
			"%[1]s -h)", c.name, f.Arg(max))
	case o.dir == "":
		return program.WrongInput("%s: -keys is empty", c.name)
	case c.file == wantsFile && o.file == "":
		return program.WrongInput("%s: which file? usage: keystore %s", c.name, c.synopsis)
	case c.name == "delete" && o.fingerprint == "":
		return program.WrongInput("%s: -fingerprint is required (see %[1]s -h)", c.name)
	case f.Lookup("out") != nil && o.out == "":
		return program.WrongInput("%s: -out is required (see %[1]s -h)", c.name)
	case f.Lookup("label") != nil && o.label == "":
		return program.WrongInput("%s: -label is required (see %[1]s -h)", c.name)
	case len(o.label) > maxLabel:
		return program.WrongInput("%s: -label has more than %d bytes", c.name, maxLabel)
	}
	return nil
}

// defaultDir returns the folder that the package uses for "", so that messages can name it.
func defaultDir() (string, error) {
	base := os.UserConfigDir
	if runtime.GOOS == "windows" {
		base = os.UserCacheDir
	}
	dir, err := base()
	return filepath.Join(dir, "sealedchat"), err
}

func names() string {
	var all []string
	for _, c := range commands() {
		all = append(all, c.name)
	}
	return strings.Join(all, ", ")
}
