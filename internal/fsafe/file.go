// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"
)

// ReadFile returns the contents of a file of at most limit bytes. The caller owns the slice. It has
// exactly the size of the file and was never copied or grown, so that wiping it wipes every byte. A
// larger file is [ErrTooLarge], before anything is allocated.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	data, _, err := d.ReadVersion(name, limit)
	return data, err
}

// ReadVersion is [Dir.ReadFile]. It also returns the version of the file that it read.
func (d *Dir) ReadVersion(name string, limit int64) ([]byte, Version, error) {
	f, err := d.open("read", name, os.O_RDONLY, d.openPrivate)
	if err != nil {
		return nil, Version{}, err
	}
	defer f.Close()
	data, v, err := readAll(f, limit)
	return data, v, d.fail("read", name, err)
}

// readAll reads a file whose size must not change meanwhile.
func readAll(f *os.File, limit int64) ([]byte, Version, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, Version{}, err
	}
	if fi.Size() > limit || fi.Size() >= math.MaxInt {
		return nil, Version{}, ErrTooLarge
	}
	data := make([]byte, fi.Size())
	_, err = io.ReadFull(f, data)
	if err == nil {
		var more [1]byte
		n, end := f.Read(more[:])
		switch {
		case n > 0:
			err = ErrChanged
		case end != io.EOF:
			err = end
		}
	} else if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = ErrChanged
	}
	if err != nil {
		clear(data)
		return nil, Version{}, err
	}
	return data, Version{fi}, nil
}

// WriteFile replaces a file, or makes it, with mode 0600 and the given contents. Readers and other
// processes see the old contents or the new ones, never a mixture, also after a crash or a power
// cut. After an error the old file is as it was, except after [ErrNotDurable]: then the file was
// replaced.
//
// Of several writers the last one wins. A writer that reads the file first holds a [Dir.Lock]
// meanwhile. A process that dies during a write leaves a temporary file; see
// [Lock.RemoveStaleTemps].
func (d *Dir) WriteFile(name string, data []byte) error {
	return d.put("write", name, data, d.ops.rename)
}

// CreateFile is [Dir.WriteFile] for a file that must not exist yet. If anything has that name, a
// dangling link included, the error is [fs.ErrExist] and the file stays as it was. It needs a file
// system with hard links.
func (d *Dir) CreateFile(name string, data []byte) error {
	return d.put("create", name, data, func(temp, name string) error {
		if err := d.ops.link(temp, name); err != nil {
			return linkError(err)
		}
		// the file is in place; if its second name stays, it is a stale temporary file
		d.root.Remove(temp)
		return nil
	})
}

// linkError says what a file system without hard links makes of them.
func linkError(err error) error {
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("the file system has no hard links (FAT and some network file systems): "+
			"use a folder on another one, or make the file there and move it here: %w", err)
	}
	return err
}

// put writes data to a temporary file, and publish gives that file its name.
func (d *Dir) put(op, name string, data []byte, publish func(temp, name string) error) error {
	if err := d.ready(op, name); err != nil {
		return err
	}
	temp := d.ops.tempName(name)
	if err := d.writeTemp(temp, data); err != nil {
		return d.fail(op, name, err)
	}
	if err := publish(temp, name); err != nil {
		d.root.Remove(temp)
		return d.fail(op, name, err)
	}
	return d.fail(op, name, d.settle())
}

// writeTemp makes a file with the given contents and syncs it to the disk. After an error there is
// no file.
func (d *Dir) writeTemp(temp string, data []byte) error {
	f, err := d.create(temp, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = d.ops.write(f, data)
	if err == nil {
		err = d.ops.sync(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		d.root.Remove(temp)
	}
	return err
}

// settle makes a change of names in the folder durable.
func (d *Dir) settle() error {
	if err := d.ops.syncDir(d.handle); err != nil {
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	return nil
}

// create makes a new private file. It removes the file again if the system did not make it private.
func (d *Dir) create(name string, flag int) (*os.File, error) {
	f, err := d.openRegular(name, flag|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	err = checkPrivate(f, d.join(name))
	if err == nil {
		err = checkCreated(f, fileMode)
	}
	if err != nil {
		f.Close()
		d.root.Remove(name)
		return nil, err
	}
	return f, nil
}

// openPrivate opens an existing file and checks the file that it opened.
func (d *Dir) openPrivate(name string, flag int) (*os.File, error) {
	f, err := d.openRegular(name, flag)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(f, d.join(name)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// open checks the name and the folder, and opens a file with how.
func (d *Dir) open(op, name string, flag int,
	how func(name string, flag int) (*os.File, error)) (*os.File, error) {
	if err := d.ready(op, name); err != nil {
		return nil, err
	}
	f, err := how(name, flag)
	return f, d.fail(op, name, err)
}

// openOrCreate opens a private file, and makes an empty one if there is none.
func (d *Dir) openOrCreate(name string, flag int) (*os.File, error) {
	var err error
	for range 10 { // others may create and remove it between the two steps
		var f *os.File
		if f, err = d.openPrivate(name, flag); !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if f, err = d.create(name, flag); err == nil {
			if err = d.settle(); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return nil, err
}

// OpenAppend opens a file for appending, and makes it with mode 0600 if there is none: every write
// goes to its end, and earlier contents can be read. The caller owns the handle. Append-only guards
// against mistakes and against writers that interleave. It does not guard against attackers: if
// they can write here, they can also truncate the file.
func (d *Dir) OpenAppend(name string) (*os.File, error) {
	return d.open("append", name, os.O_RDWR|os.O_APPEND, d.openOrCreate)
}

// Remove removes a file of any kind except a folder. Of a link it removes the link itself.
func (d *Dir) Remove(name string) error {
	if err := d.ready("remove", name); err != nil {
		return err
	}
	fi, err := d.root.Lstat(name)
	if err == nil && fi.IsDir() {
		err = ErrFileType
	}
	if err == nil {
		err = d.root.Remove(name)
	}
	if err == nil {
		err = d.settle()
	}
	return d.fail("remove", name, err)
}

// Exists reports whether anything has that name, of any kind.
func (d *Dir) Exists(name string) (bool, error) {
	if err := d.ready("stat", name); err != nil {
		return false, err
	}
	_, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, d.fail("stat", name, err)
}

// Stat returns the current version of the file, for callers who want to notice that another process
// replaced it. It does not check whether the file may be read; reading does.
func (d *Dir) Stat(name string) (Version, error) {
	if err := d.ready("stat", name); err != nil {
		return Version{}, err
	}
	fi, err := d.root.Lstat(name)
	if err == nil && !fi.Mode().IsRegular() {
		err = ErrFileType
	}
	if err != nil {
		return Version{}, d.fail("stat", name, err)
	}
	return Version{fi}, nil
}

// Version identifies one version of a file: device, inode, size and time of the last write. File
// systems reuse inodes and count time in ticks of some milliseconds. So two replacements within one
// tick of the version that they replace can go unnoticed, if the sizes are equal too. The zero
// Version means that there is no file.
type Version struct{ fi fs.FileInfo }

// Same reports whether v and w are the same version of the same file.
func (v Version) Same(w Version) bool {
	if v.fi == nil || w.fi == nil {
		return v.fi == nil && w.fi == nil
	}
	return os.SameFile(v.fi, w.fi) && v.fi.Size() == w.fi.Size() &&
		v.fi.ModTime().Equal(w.fi.ModTime())
}
