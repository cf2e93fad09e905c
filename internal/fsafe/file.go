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
)

// ReadFile returns the contents of a file of at most limit bytes. The slice is the caller's, of
// exactly the file's size, never copied and never grown, so that wiping it leaves nothing behind.
// Larger files are [ErrTooLarge] before anything is allocated.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	data, _, err := d.ReadVersion(name, limit)
	return data, err
}

// ReadVersion is [Dir.ReadFile] that also tells which version of the file it read.
func (d *Dir) ReadVersion(name string, limit int64) ([]byte, Version, error) {
	if err := d.ready("read", name); err != nil {
		return nil, Version{}, err
	}
	f, err := d.openPrivate(name, os.O_RDONLY)
	if err != nil {
		return nil, Version{}, d.fail("read", name, err)
	}
	defer f.Close()
	data, v, err := readAll(f, limit)
	return data, v, d.fail("read", name, err)
}

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
// processes see the old contents or the new, never a mixture, also after a crash or a power cut. An
// error means that the old file is as it was, except [ErrNotDurable], which says that it was
// replaced.
//
// Of several writers the last one wins; those that read first and then write hold a [Dir.Lock]
// meanwhile. A process that dies in the middle leaves a temporary file behind, see
// [Lock.RemoveStaleTemps].
func (d *Dir) WriteFile(name string, data []byte) error {
	return d.put("write", name, data, d.ops.rename)
}

// CreateFile is [Dir.WriteFile] for a file that must not exist yet: anything of that name, a
// dangling link too, makes it fail with [fs.ErrExist] and stays as it was. It needs a file system
// with hard links.
func (d *Dir) CreateFile(name string, data []byte) error {
	return d.put("create", name, data, func(temp, name string) error {
		if err := d.ops.link(temp, name); err != nil {
			return err
		}
		// the file stands; a second name that stays behind is a stale temp like any other
		d.root.Remove(temp)
		return nil
	})
}

// put writes data to a temporary file and lets publish give it its name.
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

// writeTemp makes a file with the given contents, on the disk when it returns; on error there is
// none.
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

// settle makes the folder's names durable after one has changed.
func (d *Dir) settle() error {
	if err := d.ops.syncDir(d.handle); err != nil {
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	return nil
}

// create makes a new private file and removes it again where the system made it other than private.
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

// openPrivate opens an existing file and checks what it opened.
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

// openOrCreate opens a private file, and makes it, empty, where there is none.
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

// OpenAppend opens a file, making it with mode 0600 where there is none, so that every write goes
// to its end and the earlier contents can be read back. The handle is the caller's. Whoever can
// write here can also truncate: append-only guards against mistakes and against writers that
// interleave, not against malice.
func (d *Dir) OpenAppend(name string) (*os.File, error) {
	if err := d.ready("append", name); err != nil {
		return nil, err
	}
	f, err := d.openOrCreate(name, os.O_RDWR|os.O_APPEND)
	if err != nil {
		return nil, d.fail("append", name, err)
	}
	return f, nil
}

// Remove removes a file of whatever kind, a link itself and not what it names, but no folder.
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

// Exists reports whether there is anything of that name, of whatever kind.
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

// Stat returns the file's present version, to notice that another process replaced it. It does not
// say whether the file may be read; reading does.
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
// systems reuse inodes and count time in ticks of some milliseconds, so two replacements within one
// tick of the version that they replace can go unnoticed if the sizes agree too. The zero Version
// is no file.
type Version struct{ fi fs.FileInfo }

// Same reports whether v and w are the same version of the same file.
func (v Version) Same(w Version) bool {
	if v.fi == nil || w.fi == nil {
		return v.fi == nil && w.fi == nil
	}
	return os.SameFile(v.fi, w.fi) && v.fi.Size() == w.fi.Size() &&
		v.fi.ModTime().Equal(w.fi.ModTime())
}
