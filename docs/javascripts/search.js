// The dialog of the search has a name, which readers of screens need.
"use strict";

document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
