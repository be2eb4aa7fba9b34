package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	index    = "application/vnd.oci.image.index.v1+json"
	manifest = "application/vnd.oci.image.manifest.v1+json"
	config   = "application/vnd.oci.image.config.v1+json"
	layer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// What is served: blobs and manifests by digest, and manifests by "repository:tag" too.
type store struct {
	blobs map[string][]byte
	types map[string]string
	tags  map[string]string
}

// OCI's descriptor of a blob.
type descriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int               `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *store) add(mediaType string, data []byte) descriptor {
	name := digest(data)
	s.blobs[name] = data
	s.types[name] = mediaType
	return descriptor{MediaType: mediaType, Digest: name, Size: len(data)}
}

func (s *store) addJSON(mediaType string, value any) descriptor {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // Maps and strings alone are marshalled here.
	}
	return s.add(mediaType, data)
}

// An image for one platform of these layers, which are archives.
func (s *store) image(platform string, settings map[string]any, layers ...[]byte) descriptor {
	words := strings.Split(platform, "/")
	described := map[string]string{"os": words[0], "architecture": words[1]}
	if len(words) > 2 {
		described["variant"] = words[2]
	}
	var diffs []string
	var packed []descriptor
	for _, archive := range layers {
		diffs = append(diffs, digest(archive))
		packed = append(packed, s.add(layer, compress(archive)))
	}
	configuration := map[string]any{
		"config": settings,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}
	for key, value := range described {
		configuration[key] = value
	}
	made := s.addJSON(manifest, map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifest,
		"config":        s.addJSON(config, configuration),
		"layers":        packed,
	})
	made.Platform = described
	return made
}

// Tags an index of images.
func (s *store) tag(name string, images ...descriptor) {
	made := s.addJSON(index, map[string]any{"schemaVersion": 2, "mediaType": index, "manifests": images})
	s.tags[name] = made.Digest
}

func compress(archive []byte) []byte {
	var packed bytes.Buffer
	// Where the processor is emulated it takes seconds to make it any smaller. A buffer takes everything.
	writer, _ := gzip.NewWriterLevel(&packed, gzip.NoCompression)
	_, _ = writer.Write(archive)
	_ = writer.Close()
	return packed.Bytes()
}

// An entry of a layer; one whose name ends with a slash is a directory.
type entry struct {
	name     string
	mode     int64
	uid, gid int
	content  string
}

func archive(entries ...entry) []byte {
	var packed bytes.Buffer
	writer := tar.NewWriter(&packed)
	for _, entry := range entries {
		header := tar.Header{Name: entry.name, Mode: entry.mode, Uid: entry.uid, Gid: entry.gid, Size: int64(len(entry.content))}
		if strings.HasSuffix(entry.name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := writer.WriteHeader(&header); err != nil {
			panic(err) // The entries are this program's own.
		}
		_, _ = io.WriteString(writer, entry.content)
	}
	_ = writer.Close()
	return packed.Bytes()
}

// The archive of a directory, all of it root's, but for the entries that are in its place or besides.
func archiveOf(directory string, others ...entry) ([]byte, error) {
	replaced := map[string]bool{}
	for _, other := range others {
		replaced[other.name] = true
	}
	var packed bytes.Buffer
	writer := tar.NewWriter(&packed)
	err := filepath.Walk(directory, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(directory, path)
		if err != nil || name == "." || replaced[name] {
			return err
		}
		target := ""
		if info.Mode()&os.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, 0, 0, "", ""
		if info.IsDir() {
			header.Name += "/"
		}
		if err := writer.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err == nil {
			_, err = writer.Write(content)
		}
		return err
	})
	if err == nil {
		err = writer.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", directory, err)
	}
	return append(packed.Bytes()[:packed.Len()-1024], archive(others...)...), nil
}
