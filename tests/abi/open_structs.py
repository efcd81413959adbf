#!/usr/bin/env python3
"""Members of the open structs in two interfaces (abidw): those of the first must begin those of the second, with the same
name, place and type. A suppressed growth hides a struct's other changes from abidiff. SPDX-License-Identifier: Apache-2.0

Usage: open_structs.py allowed.suppr OLD NEW"""
import re
import sys
import xml.etree.ElementTree as ET


def structs(path, names):
    root = ET.parse(path).getroot()
    types = {e.get("id"): e for e in root.iter() if e.get("id")}

    def text(identifier):
        e = types.get(identifier)
        if e is None:
            return identifier or "..."
        if e.tag == "pointer-type-def":
            return text(e.get("type-id")) + " *"
        if e.tag == "qualified-type-def":
            return ("const " if e.get("const") else "volatile ") + text(e.get("type-id"))
        if e.tag == "typedef-decl":
            return text(e.get("type-id"))  # which of several names for one type abidw writes changes from build to build
        if e.tag == "array-type-def":
            return text(e.get("type-id")) + "".join(f"[{s.get('length')}]" for s in e.iter("subrange"))
        if e.tag == "function-type":
            parameters = ", ".join(text(p.get("type-id")) for p in e.iter("parameter"))
            return f"({text(e.find('return').get('type-id'))})({parameters})"
        return f"{e.tag} {e.get('name')}"

    found = {}
    for c in root.iter("class-decl"):
        if re.match(names, c.get("name", "")) and not c.get("is-declaration-only"):
            found[c.get("name")] = [
                (m.find("var-decl").get("name"), m.get("layout-offset-in-bits"), text(m.find("var-decl").get("type-id")))
                for m in c.findall("data-member")
            ]
    return found


def main(suppressions, old_path, new_path):
    with open(suppressions, encoding="utf-8") as f:
        names = re.search(r"^\s*name_regexp = (.*)$", f.read(), re.M).group(1)
    old, new = structs(old_path, names), structs(new_path, names)
    bad = 0
    for name, members in sorted(old.items()):
        now = new.get(name, [])
        for i, member in enumerate(members):
            if i >= len(now) or now[i] != member:
                print(f"{name}: member {i} was {member}, is {now[i] if i < len(now) else 'gone'}")
                bad = 1
    return 4 * bad  # abidiff's bit for a change


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
